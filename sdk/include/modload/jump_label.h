// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * modload/jump_label.h: static keys. A branch on a static key costs a NOP, or a jump that is always taken. When the key
 * is switched, the instructions at all its branches change, in all modules at once. All names have the meaning of Linux's
 * <linux/jump_label.h>.
 *
 *     static DEFINE_STATIC_KEY_FALSE(verbose);
 *
 *     if (static_branch_unlikely(&verbose))
 *             report();
 *
 *     static_branch_enable(&verbose);
 *
 * A key is identified by its symbol, so the argument must be &KEY or an equivalent constant expression. A key of another
 * module, which exports it with EXPORT_SYMBOL, or of the host is declared with DECLARE_STATIC_KEY_TRUE or _FALSE.
 */
#ifndef MODLOAD_JUMP_LABEL_H
#define MODLOAD_JUMP_LABEL_H

#include <modload/module.h>

/* 16 bytes. `enabled` is the count. Any code may read it; only the loader writes it. */
struct static_key {
	int enabled;
	int modload__reserved[3];
} __attribute__((aligned(8)));

/* The type tells the compiler the likely state. In the likely state the branch costs a NOP. */
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
 * The assembler code names the key. In position-independent code compilers allow this only for symbols that no other
 * object can replace: compile a key that is not static with -fvisibility=hidden. EXPORT_SYMBOL works with hidden symbols.
 */
#define DEFINE_STATIC_KEY_TRUE(name) struct static_key_true name = STATIC_KEY_TRUE_INIT
#define DEFINE_STATIC_KEY_FALSE(name) struct static_key_false name = STATIC_KEY_FALSE_INIT
/* The module's code must not write to these keys after init has returned. The loader can still switch them. */
#define DEFINE_STATIC_KEY_TRUE_RO(name) struct static_key_true name __ro_after_init = STATIC_KEY_TRUE_INIT
#define DEFINE_STATIC_KEY_FALSE_RO(name) struct static_key_false name __ro_after_init = STATIC_KEY_FALSE_INIT
#define DECLARE_STATIC_KEY_TRUE(name) extern __attribute__((visibility("hidden"))) struct static_key_true name
#define DECLARE_STATIC_KEY_FALSE(name) extern __attribute__((visibility("hidden"))) struct static_key_false name

#ifdef __cplusplus
extern "C" {
#endif

/* Return 0, or a negative error number if the key was not changed. Must not be called from a signal handler. */
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
 * A branch that is taken if the key is enabled. If the key's type and the branch's likelihood agree, the compiled code has
 * a NOP of five bytes, otherwise a jump of two or five bytes.
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

/* A record of __jump_table: the site, the target of the jump, and the key, whose lowest bit marks a likely branch. */
#define MODLOAD__SITE(instruction)                                                                                   \
	"1:\t" instruction "\n"                                                                                      \
	"\t.pushsection __jump_table, \"a\", @progbits\n"                                                            \
	"\t.balign 8\n"                                                                                              \
	"\t.long 1b - ., %l[jumped] - .\n"                                                                           \
	"\t.quad %c0 + %c1 - .\n"                                                                                    \
	"\t.popsection"

#endif
