// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * modload/jump_label.h: static keys. A branch on one costs a NOP, or a jump that is always taken: what stands there is
 * changed when the key is switched, at all places in all modules at once. The names mean what they mean in Linux's
 * <linux/jump_label.h>.
 *
 *     static DEFINE_STATIC_KEY_FALSE(verbose);
 *
 *     if (static_branch_unlikely(&verbose))
 *             report();
 *
 *     static_branch_enable(&verbose);
 *
 * Keys are known by their symbols, so the argument is &KEY, or a constant expression like it. A key of another module,
 * which exports it with EXPORT_SYMBOL, is declared with DECLARE_STATIC_KEY_TRUE or _FALSE; so is one of the host's.
 */
#ifndef MODLOAD_JUMP_LABEL_H
#define MODLOAD_JUMP_LABEL_H

#include <modload/module.h>

/* 16 bytes. `enabled` is the count; it is read by anybody and written by the loader alone. */
struct static_key {
	int enabled;
	int modload__reserved[3];
} __attribute__((aligned(8)));

/* The type says what the compiler takes for likely: a NOP stands there while the key is in that state. */
struct static_key_true {
	struct static_key key;
};

struct static_key_false {
	struct static_key key;
};

#define STATIC_KEY_INIT_TRUE { 1, { 0, 0, 0 } }
#define STATIC_KEY_INIT_FALSE { 0, { 0, 0, 0 } }
#define STATIC_KEY_TRUE_INIT { STATIC_KEY_INIT_TRUE }
#define STATIC_KEY_FALSE_INIT { STATIC_KEY_INIT_FALSE }

/*
 * The assembler names the key, and compilers allow that in position-independent code only if no other object can take
 * the symbol's place: a key that is not static needs -fvisibility=hidden there. EXPORT_SYMBOL does not mind.
 */
#define DEFINE_STATIC_KEY_TRUE(name) struct static_key_true name = STATIC_KEY_TRUE_INIT
#define DEFINE_STATIC_KEY_FALSE(name) struct static_key_false name = STATIC_KEY_FALSE_INIT
/* Not for modules' code to write when init has returned; the loader goes on to switch them. */
#define DEFINE_STATIC_KEY_TRUE_RO(name) struct static_key_true name __ro_after_init = STATIC_KEY_TRUE_INIT
#define DEFINE_STATIC_KEY_FALSE_RO(name) struct static_key_false name __ro_after_init = STATIC_KEY_FALSE_INIT
#define DECLARE_STATIC_KEY_TRUE(name) extern __attribute__((visibility("hidden"))) struct static_key_true name
#define DECLARE_STATIC_KEY_FALSE(name) extern __attribute__((visibility("hidden"))) struct static_key_false name

#ifdef __cplusplus
extern "C" {
#endif

/* 0, or a negative error number: the key is as it was. Not to be called from a signal handler. */
int static_key_enable(struct static_key *key);
int static_key_disable(struct static_key *key);
int static_key_slow_inc(struct static_key *key);
int static_key_slow_dec(struct static_key *key);
int static_key_count(struct static_key *key);

#ifdef __cplusplus
}
#endif

#define static_branch_enable(x) static_key_enable(&(x)->key)
#define static_branch_disable(x) static_key_disable(&(x)->key)
#define static_branch_inc(x) static_key_slow_inc(&(x)->key)
#define static_branch_dec(x) static_key_slow_dec(&(x)->key)
#define static_key_enabled(x) (__atomic_load_n(&(x)->key.enabled, __ATOMIC_ACQUIRE) > 0)

/*
 * A branch that is taken if the key is enabled. Where the key's type and the branch's likelihood agree a NOP of five
 * bytes stands there as compiled, else a jump of two or five.
 */
#define static_branch_likely(x) MODLOAD__BRANCH(x, MODLOAD__IS_TRUE(x), 1)
#define static_branch_unlikely(x) MODLOAD__BRANCH(x, !MODLOAD__IS_TRUE(x), 0)

#ifdef __cplusplus
#define MODLOAD__IS_TRUE(x) MODLOAD__SAME(__typeof__(x), struct static_key_true *)
#else
#define MODLOAD__IS_TRUE(x) MODLOAD__SAME(__typeof__(*(x)), struct static_key_true)
#endif

#define MODLOAD__BRANCH(x, nop, likely)                                                                              \
	__extension__({                                                                                              \
		__label__ jumped;                                                                                    \
		bool modload__taken = (likely);                                                                      \
		if (nop)                                                                                             \
			__asm__ goto(MODLOAD__SITE(".byte 0x0f, 0x1f, 0x44, 0x00, 0x00")                             \
				     : : "i"(&(x)->key), "i"(likely) : : jumped);                                    \
		else                                                                                                 \
			__asm__ goto(MODLOAD__SITE("jmp %l[jumped]") : : "i"(&(x)->key), "i"(likely) : : jumped);    \
		if (0) {                                                                                             \
		jumped:                                                                                              \
			modload__taken = !(likely);                                                                  \
		}                                                                                                    \
		__builtin_expect(modload__taken, (likely));                                                          \
	})

/* A record of __jump_table: the site, where it jumps to, and the key, whose lowest bit says that it is likely. */
#define MODLOAD__SITE(instruction)                                                                                   \
	"1:\t" instruction "\n"                                                                                      \
	"\t.pushsection __jump_table, \"a\", @progbits\n"                                                            \
	"\t.balign 8\n"                                                                                              \
	"\t.long 1b - ., %l[jumped] - .\n"                                                                           \
	"\t.quad %c0 + %c1 - .\n"                                                                                    \
	"\t.popsection"

#endif
