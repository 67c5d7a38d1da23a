// SPDX-License-Identifier: MIT OR Apache-2.0
/* What the scenes' modules use of Linux beyond live patching: Linux's own. */
#include <linux/completion.h>
#include <linux/delay.h>
#include <linux/seq_file.h>
#include <linux/slab.h>
#include <linux/workqueue.h>
