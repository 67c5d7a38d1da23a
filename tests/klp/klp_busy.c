// SPDX-License-Identifier: MIT OR Apache-2.0
/* A module that can be busy in a function that a patch replaces, as long as the module is loaded. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <modload/module.h>
#include <modload/printk.h>
#include "scene.h"

static bool stay;
module_param(stay, bool, 0644);

static void busy_work(struct work_struct *work);
static DECLARE_WORK(work, busy_work);
static DECLARE_COMPLETION(begun);

static void busy_work(struct work_struct *unused)
{
	(void)unused;
	pr_info("%s begins\n", __func__);
	complete(&begun);
	while (READ_ONCE(stay))
		msleep(20);
	pr_info("%s ends\n", __func__);
}

static int klp_busy_init(void)
{
	pr_info("%s\n", __func__);
	schedule_work(&work);
	/* Gives the lines an order. */
	wait_for_completion(&begun);
	if (!stay)
		flush_work(&work);
	return 0;
}
module_init(klp_busy_init);

static void klp_busy_exit(void)
{
	WRITE_ONCE(stay, false);
	flush_work(&work);
	pr_info("%s\n", __func__);
}
module_exit(klp_busy_exit);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("a patch's busy target");
