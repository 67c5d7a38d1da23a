// SPDX-License-Identifier: MIT OR Apache-2.0
/* A module that exports nothing. A patch uses a variable and a function of the module. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <modload/module.h>
#include <modload/printk.h>

/* The compiler does not change a function that is marked `used`: other code may refer to the function. */
static __attribute__((__used__)) int secret = 40;

/* A name that is no identifier, as compilers make them. */
static int twice(int n) __asm__("twice.isra.0");
static __attribute__((__noinline__, __used__)) int twice(int n)
{
	return 2 * n;
}

static __attribute__((__noinline__, __used__)) void tell(const char *when)
{
	pr_info("%s: this is a secret\n", when);
}

static int klp_secret_init(void)
{
	secret += 2;
	tell("init");
	return 0;
}
module_init(klp_secret_init);

static void klp_secret_exit(void)
{
	secret++;
	tell("exit");
}
module_exit(klp_secret_exit);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("a target that exports nothing");
