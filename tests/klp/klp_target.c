// SPDX-License-Identifier: MIT OR Apache-2.0
/* A module. A patch is notified when the module is loaded and unloaded. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <modload/module.h>
#include <modload/printk.h>

static int klp_target_init(void)
{
	pr_info("%s\n", __func__);
	return 0;
}
module_init(klp_target_init);

static void klp_target_exit(void)
{
	pr_info("%s\n", __func__);
}
module_exit(klp_target_exit);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("a patch's target");
