/* What tracing must cost at least: no checks, nothing that can be switched. */
#pragma once

int floor_callback(int a);
int floor_graph(int a);
