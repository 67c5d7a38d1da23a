// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * modload/livepatch.h: live patches, as in Linux 6.1 (Documentation/livepatch). A patch is a module that says
 * MODULE_INFO(livepatch, "Y") and calls klp_enable_patch in its init:
 *
 *     static int new_answer(void) { return 42; }
 *     static struct klp_func funcs[] = { { .old_name = "answer", .new_func = (void *)new_answer }, {} };
 *     static struct klp_object objs[] = { { .name = "target", .funcs = funcs }, {} };
 *     static struct klp_patch patch = { .mod = THIS_MODULE, .objs = objs };
 *     static int __init start(void) { return klp_enable_patch(&patch); }
 *     module_init(start);
 *     MODULE_INFO(livepatch, "Y");
 *
 * Functions are found in the target's symbol table by name, so static functions can be patched too. The target must be
 * compiled with -fpatchable-function-entry=5 (docs/tracing.md). All records must be variables of the module that are not
 * __initdata, because the loader writes to them. An empty record ends an array.
 */
#ifndef MODLOAD_LIVEPATCH_H
#define MODLOAD_LIVEPATCH_H

#include <modload/module.h>

#ifdef __cplusplus
extern "C" {
#endif

struct klp_object;

/* A function that is replaced. */
struct klp_func {
	const char *old_name;
	void *new_func;           /* in this module's .text */
	unsigned long old_sympos; /* position among the functions of this name, from 1; 0: there is only one */

	void *modload__internal[5];
};

/*
 * Functions that are called before and after the changes of an object. Each may be NULL. If pre_patch returns another value
 * than 0, the patch, or the module that is being loaded, is refused, and no other callback is called. Callbacks must not use
 * live patching themselves.
 */
struct klp_callbacks {
	int (*pre_patch)(struct klp_object *obj);
	void (*post_patch)(struct klp_object *obj);
	void (*pre_unpatch)(struct klp_object *obj);
	void (*post_unpatch)(struct klp_object *obj);

	bool modload__internal;
};

/* An object whose functions are replaced. An array of functions may be empty, but not NULL. */
struct klp_object {
	const char *name; /* the name of the module; NULL for the host's own functions */
	struct klp_func *funcs;
	struct klp_callbacks callbacks;

	struct module *mod; /* set for callbacks: the module, if it is loaded; NULL for the host */
	void *modload__internal[4];
};

/* A state other than functions that a patch has changed. */
struct klp_state {
	unsigned long id; /* not 0 */
	unsigned int version;
	void *data; /* for the patch's own use */
};

/* A patch. */
struct klp_patch {
	struct module *mod;       /* THIS_MODULE */
	struct klp_object *objs;
	struct klp_state *states; /* NULL: none */
	bool replace;             /* replaces all enabled patches */

	void *modload__internal[8];
};

MODLOAD__ASSERT(sizeof(struct klp_func) == 64 && sizeof(struct klp_callbacks) == 40, "struct klp_func, struct klp_callbacks");
MODLOAD__ASSERT(sizeof(struct klp_object) == 96 && offsetof(struct klp_object, mod) == 56, "struct klp_object");
MODLOAD__ASSERT(sizeof(struct klp_state) == 24 && sizeof(struct klp_patch) == 96, "struct klp_state, struct klp_patch");
/* The sizes of klp_func, klp_object and klp_patch. Linux's records have other sizes, and a stripped module has no symbols to tell. */
MODULE_INFO(klp_records, "64,96,96");

/*
 * Must be called from init only. Returns 0, or a negative error number, which init should return. The patch stays enabled,
 * and its module loaded, until the host disables the patch.
 */
int klp_enable_patch(struct klp_patch *patch);

/*
 * Marks a declaration: the declared symbol is a symbol of another object, which need not export it. It may be static.
 *
 *     extern int count KLP_SYMBOL(target, count, 0);
 *     int refill(struct pool *pool) KLP_SYMBOL(target, refill, 2);
 *
 * object: a module's name, or vmlinux for the host. name: the name in the object's symbol table (mangled for a C++ function).
 * pos: the position among the symbols of this name, a plain decimal number from 1; 0 if there is only one. Use a string for a
 * name that is not an identifier:
 *
 *     int step(int n) KLP_SYMBOL_NAMED(target, "step.isra.0", 0);
 *
 * `modhost klp-link IN.o -o OUT.ko` converts these references to relocations that are applied when the object is loaded.
 * Before that the references are invalid. Only functions that replace functions of this object may use them, and never code or
 * data that is __init.
 *
 * The mark is a symbol name that needs no quotes. Later versions of Linux use a quoted name, but clang keeps the quotes as
 * part of the name, and GNU as 2.40 does not accept a quoted name before @PLT.
 */
#define KLP_SYMBOL(object, name, pos) __asm__(".modload.klp." #object "." #name "." #pos)
#define KLP_SYMBOL_NAMED(object, name, pos) __asm__(".modload.klp." #object "." name "." #pos)

/* Returns the patch's state with this id, or NULL if it has none. */
static inline struct klp_state *klp_get_state(struct klp_patch *patch, unsigned long id)
{
	struct klp_state *state = patch->states;

	for (; state && state->id; state++)
		if (state->id == id)
			return state;
	return NULL;
}

/*
 * A checkpoint: the calling thread migrates to the patched functions here if no function that changes is on its stack. In hosts
 * where threads migrate at checkpoints only, they migrate nowhere else. Without a transition a checkpoint costs a call, a load
 * and a branch. Returns whether the thread has migrated or has no need to.
 */
bool klp_checkpoint(void);

/* For callbacks only: returns the newest state with this id of the patches before the one in transition, or NULL. */
struct klp_state *klp_get_prev_state(unsigned long id);

/* Allocation flags, as in Linux. They have no effect here. */
typedef unsigned int gfp_t;
#define GFP_KERNEL ((gfp_t)0xcc0)
#define GFP_ATOMIC ((gfp_t)0xa20)

/*
 * Shadow variables: data attached to a pair <obj, id>, visible in the whole process. The constructor runs once, before other
 * code can get the data. If it returns another value than 0, no variable is made. The destructor runs when no code can get the
 * data any more.
 */
typedef int (*klp_shadow_ctor_t)(void *obj, void *shadow_data, void *ctor_data);
typedef void (*klp_shadow_dtor_t)(void *obj, void *shadow_data);

/* Returns the data, or NULL. */
void *klp_shadow_get(void *obj, unsigned long id);
/* Returns new data of zeros, aligned to 16. Returns NULL if data exists already, the constructor fails, or memory is exhausted. */
void *klp_shadow_alloc(void *obj, unsigned long id, size_t size, gfp_t gfp_flags, klp_shadow_ctor_t ctor, void *ctor_data);
/* Returns the existing data, or new data. */
void *klp_shadow_get_or_alloc(void *obj, unsigned long id, size_t size, gfp_t gfp_flags, klp_shadow_ctor_t ctor,
			      void *ctor_data);
/* Free one variable if it exists, or all variables of an id. Variables that a module does not free stay until the process ends. */
void klp_shadow_free(void *obj, unsigned long id, klp_shadow_dtor_t dtor);
void klp_shadow_free_all(unsigned long id, klp_shadow_dtor_t dtor);

#ifdef __cplusplus
}
#endif

#endif
