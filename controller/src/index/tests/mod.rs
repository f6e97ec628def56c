mod networks;
mod policies;
mod routes;
mod services;
mod slices;
mod workloads;
