// SPDX-License-Identifier: MIT OR Apache-2.0
/* The headers of Linux that the scenes' modules use in addition to live patching. */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/workqueue.h>
