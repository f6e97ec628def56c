mod access;
mod networks;
mod policies;
mod routes;
mod services;
mod sessions;
mod slices;
mod workloads;
