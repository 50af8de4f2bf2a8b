//! Tests of the whole store on a simulated disk, without threads.

mod behaviour;
mod crash;
mod damage;
mod group_behaviour;
mod group_format;
mod groups;
mod model;
mod observer;
mod world;
