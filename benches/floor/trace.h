/* The minimal cost of tracing: without checks, and without a way to switch it off. */
#pragma once

int floor_callback(int a);
int floor_graph(int a);
