// SPDX-License-Identifier: MIT OR Apache-2.0
/* The scenes' modules are compiled for Linux itself. */
#include <linux/livepatch.h>
