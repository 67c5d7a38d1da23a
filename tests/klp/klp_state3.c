// SPDX-License-Identifier: MIT OR Apache-2.0
/* The next cumulative patch: what it does to the state is the same. */
#include "klp_state2.c"
