// SPDX-License-Identifier: MIT OR Apache-2.0
/* The scenes' modules are compiled for Linux itself. Macros that Linux does not have are defined as in the SDK. */
#include <linux/livepatch.h>

#define KLP_SYMBOL(object, name, pos) __asm__(".modload.klp." #object "." #name "." #pos)
#define KLP_SYMBOL_NAMED(object, name, pos) __asm__(".modload.klp." #object "." name "." #pos)
