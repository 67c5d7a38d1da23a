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
 * Names are looked for in the target's symbol table, so that static functions can be patched, too. The target is compiled with
 * -fpatchable-function-entry=5 (docs/tracing.md). All records are the module's own variables (they are written), and not
 * __initdata; an array ends with an empty record.
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
	unsigned long old_sympos; /* which of several of that name, from 1; 0: there is one */

	void *modload__internal[5];
};

/*
 * What is called around an object. All may be missing. What pre_patch returns, if it is not 0, refuses the patch, or the module
 * that is being loaded, and nothing else is called then. Live patching cannot be used from within.
 */
struct klp_callbacks {
	int (*pre_patch)(struct klp_object *obj);
	void (*post_patch)(struct klp_object *obj);
	void (*pre_unpatch)(struct klp_object *obj);
	void (*post_unpatch)(struct klp_object *obj);

	bool modload__internal;
};

/* Something whose functions are replaced. An array of functions may be empty, but not missing. */
struct klp_object {
	const char *name; /* the module; NULL for the host's own functions */
	struct klp_func *funcs;
	struct klp_callbacks callbacks;

	struct module *mod; /* set for callbacks: the module, if it is there; NULL for the host */
	void *modload__internal[4];
};

/* What a patch has changed that is no function. */
struct klp_state {
	unsigned long id; /* not 0 */
	unsigned int version;
	void *data; /* the patches' own */
};

/* A patch. */
struct klp_patch {
	struct module *mod;       /* THIS_MODULE */
	struct klp_object *objs;
	struct klp_state *states; /* NULL: none */
	bool replace;             /* all patches that are there */

	void *modload__internal[8];
};

MODLOAD__ASSERT(sizeof(struct klp_func) == 64 && sizeof(struct klp_callbacks) == 40, "struct klp_func, struct klp_callbacks");
MODLOAD__ASSERT(sizeof(struct klp_object) == 96 && offsetof(struct klp_object, mod) == 56, "struct klp_object");
MODLOAD__ASSERT(sizeof(struct klp_state) == 24 && sizeof(struct klp_patch) == 96, "struct klp_state, struct klp_patch");
/* The sizes of klp_func, klp_object and klp_patch: Linux's records have others, and a stripped module no symbols that tell. */
MODULE_INFO(klp_records, "64,96,96");

/*
 * From init only: 0, or a negative error number, with which init should return. The patch stays enabled until the host disables
 * it, and holds its module for as long.
 */
int klp_enable_patch(struct klp_patch *patch);

/*
 * Behind a declaration: what is declared is a symbol of an object that the object need not export, a static one perhaps.
 *
 *     extern int count KLP_SYMBOL(target, count, 0);
 *     int refill(struct pool *pool) KLP_SYMBOL(target, refill, 2);
 *
 * object: a module's name, or vmlinux for the host. name: as its symbol table has it (that of a function of C++ is mangled). pos: a
 * plain decimal number: which of several symbols of that name, from 1; 0: there is one. A name that is no identifier is a string:
 *
 *     int step(int n) KLP_SYMBOL_NAMED(target, "step.isra.0", 0);
 *
 * `modhost klp-link IN.o -o OUT.ko` turns these references into relocations that are applied when the object is there. Before that
 * they lead nowhere: only what replaces the object's own functions may follow them, and never what is __init.
 *
 * The mark is a symbol's name that needs no quotes. A quoted one, as later versions of Linux have it, keeps its quotes with clang,
 * and GNU as 2.40 takes none before @PLT.
 */
#define KLP_SYMBOL(object, name, pos) __asm__(".modload.klp." #object "." #name "." #pos)
#define KLP_SYMBOL_NAMED(object, name, pos) __asm__(".modload.klp." #object "." name "." #pos)

/* The state of a patch, NULL if it has none of this number. */
static inline struct klp_state *klp_get_state(struct klp_patch *patch, unsigned long id)
{
	struct klp_state *state = patch->states;

	for (; state && state->id; state++)
		if (state->id == id)
			return state;
	return NULL;
}

/*
 * A place where the calling thread can go over to what a patch brings, if none of the functions that change is on its stack: in hosts
 * where threads go over at checkpoints alone, no other does. A load and a branch when no transition is under way, and the call.
 * Says whether the thread is over, or need not be.
 */
bool klp_checkpoint(void);

/* From a callback only: the newest state of this number of the patches that were there before the one in transition, or NULL. */
struct klp_state *klp_get_prev_state(unsigned long id);

/* How memory is allocated; nothing depends on it here. */
typedef unsigned int gfp_t;
#define GFP_KERNEL ((gfp_t)0xcc0)
#define GFP_ATOMIC ((gfp_t)0xa20)

/*
 * Shadow variables: data that belongs to <obj, id>, in all the process. A constructor runs once, before others can get the data; if
 * it returns anything but 0, there is no variable. A destructor runs when others cannot get it any more.
 */
typedef int (*klp_shadow_ctor_t)(void *obj, void *shadow_data, void *ctor_data);
typedef void (*klp_shadow_dtor_t)(void *obj, void *shadow_data);

/* The data, or NULL. */
void *klp_shadow_get(void *obj, unsigned long id);
/* New data of zeros, aligned to 16; NULL if there is some already, if the constructor fails, and if there is no memory. */
void *klp_shadow_alloc(void *obj, unsigned long id, size_t size, gfp_t gfp_flags, klp_shadow_ctor_t ctor, void *ctor_data);
/* The data that is there, or new one. */
void *klp_shadow_get_or_alloc(void *obj, unsigned long id, size_t size, gfp_t gfp_flags, klp_shadow_ctor_t ctor,
			      void *ctor_data);
/* Frees one, if it is there; those of an id, for all objects. What a module does not free stays as long as the process. */
void klp_shadow_free(void *obj, unsigned long id, klp_shadow_dtor_t dtor);
void klp_shadow_free_all(unsigned long id, klp_shadow_dtor_t dtor);

#ifdef __cplusplus
}
#endif

#endif
