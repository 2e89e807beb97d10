//! The server as its callers see it, driven call by call.

mod driver;
mod fsck;

mod errors;
mod files;
mod fuzz;
mod leases;
mod locks;
mod model;
mod pages;
mod permissions;
mod quota;
mod restart;
mod snapshot;
mod sole;
mod space;
mod staged;
