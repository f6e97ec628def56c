mod policies;
mod routes;
mod services;
mod workloads;
