// SPDX-License-Identifier: MIT OR Apache-2.0
/* Shadow variables of three objects, two each: made, found, made again without success, freed one by one and all together. */
#define pr_fmt(fmt) KBUILD_MODNAME ": " fmt

#include <modload/livepatch.h>
#include <modload/module.h>
#include <modload/printk.h>
#include "scene.h"

enum { OBJECTS = 3, LETTER = 0x1234, NUMBER = 0x1235, MOST_SEEN = 64 };

/* Lines name pointers by the order in which they were first seen. */
static const void *seen[MOST_SEEN];
static int seen_count;

static int nth(const void *pointer)
{
	int i;

	for (i = 0; i < seen_count; i++)
		if (seen[i] == pointer)
			return i;
	if (seen_count == MOST_SEEN)
		return -1;
	seen[seen_count] = pointer;
	return seen_count++;
}

static int make(void *object, void *data, void *from)
{
	void **to = data, **value = from;

	if (!value)
		return -EINVAL;
	*to = *value;
	pr_info("constructor: %d of object %d is %d\n", nth(data), nth(object), nth(*value));
	return 0;
}

static void drop(void *object, void *data)
{
	pr_info("destructor: %d of object %d\n", nth(data), nth(object));
}

static void *found(void *object, unsigned long id)
{
	void **data = klp_shadow_get(object, id);

	pr_info("get: <%d, %lx> is %d\n", nth(object), id, nth(data));
	if (data)
		pr_info("  and holds %d\n", nth(*data));
	return data;
}

static void *made(void *object, unsigned long id, void *value, bool get)
{
	void *data = get ? klp_shadow_get_or_alloc(object, id, sizeof(value), GFP_KERNEL, make, &value)
			 : klp_shadow_alloc(object, id, sizeof(value), GFP_KERNEL, make, &value);

	pr_info("%s: <%d, %lx> is %d\n", get ? "get_or_alloc" : "alloc", nth(object), id, nth(data));
	return data;
}

static int klp_shadow_init(void)
{
	static char letters[OBJECTS];
	static int numbers[OBJECTS];
	static int objects[OBJECTS];
	int i;

	nth(NULL);
	found(&objects[0], LETTER);
	for (i = 0; i < OBJECTS; i++)
		if (!made(&objects[i], LETTER, &letters[i], i % 2 == 0) || !made(&objects[i], NUMBER, &numbers[i], false))
			goto out;
	for (i = 0; i < OBJECTS; i++)
		if (!found(&objects[i], LETTER) || !found(&objects[i], NUMBER))
			goto out;
	for (i = 0; i < OBJECTS; i++)
		if (!made(&objects[i], LETTER, &numbers[i], true))
			goto out;
	for (i = 0; i < OBJECTS; i++) {
		klp_shadow_free(&objects[i], LETTER, drop);
		found(&objects[i], LETTER);
	}
	for (i = 0; i < OBJECTS; i++)
		found(&objects[i], NUMBER);
	klp_shadow_free_all(NUMBER, NULL);
	for (i = 0; i < OBJECTS; i++)
		found(&objects[i], NUMBER);
	return 0;
out:
	klp_shadow_free_all(LETTER, NULL);
	klp_shadow_free_all(NUMBER, NULL);
	return -ENOMEM;
}
module_init(klp_shadow_init);

static void klp_shadow_exit(void)
{
}
module_exit(klp_shadow_exit);

MODULE_LICENSE("Dual MIT/GPL");
MODULE_DESCRIPTION("shadow variables");
