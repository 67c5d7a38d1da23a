// SPDX-License-Identifier: MIT OR Apache-2.0
/* The next cumulative patch, with the same effect on the state. */
#include "klp_state2.c"
