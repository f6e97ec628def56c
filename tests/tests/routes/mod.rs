//! What Gateway API's routes say beyond matches, weights and headers, through real sidecars.

mod cors;
mod external_auth;
