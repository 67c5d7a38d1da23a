// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * modload/static_call.h: static calls. The called function can be changed, but a call costs only a direct call: the call
 * instructions are changed, in all modules at once. All names have the meaning of Linux's <linux/static_call.h>.
 *
 *     int plain(int n);
 *     DEFINE_STATIC_CALL(step, plain);
 *
 *     return static_call(step)(n);
 *
 *     static_call_update(step, clever);
 *
 * Calls are found by their relocations; no tool has to process the object. A use that is not a plain call or jump goes
 * through a trampoline, which costs one more jump.
 */
#ifndef MODLOAD_STATIC_CALL_H
#define MODLOAD_STATIC_CALL_H

#include <modload/module.h>

/* 16 bytes. Any code may read `func`; only the loader writes it. */
struct static_call_key {
	void *func;
	void *modload__reserved;
};

#ifdef __cplusplus
#define MODLOAD__EXTERN extern "C"
extern "C" {
#else
#define MODLOAD__EXTERN extern
#endif

/* Returns 0, or a negative error number if the function was not changed. Must not be called from a signal handler. */
int __static_call_update(struct static_call_key *key, void *tramp, void *func);
/* Returns 0. No call site calls this function: the call becomes an instruction that zeroes the result. */
long __static_call_return0(void);

#ifdef __cplusplus
}
#endif

#define STATIC_CALL_KEY(name) MODLOAD__GLUE(__SCK__, name)
#define STATIC_CALL_TRAMP(name) MODLOAD__GLUE(__SCT__, name)

/* Declares a static call that another module or the host exports. func is any function of the called type. */
#define DECLARE_STATIC_CALL(name, func)                                                                              \
	__asm__(".pushsection .modload.static_calls, \"\", @progbits\n.popsection");                                 \
	MODLOAD__EXTERN __attribute__((visibility("hidden"))) struct static_call_key STATIC_CALL_KEY(name);          \
	MODLOAD__EXTERN __attribute__((visibility("hidden"))) __typeof__(func) STATIC_CALL_TRAMP(name)

/* Define a static call of func; of no function, so that a call does nothing (usually of type void); of a function that returns 0. */
#define DEFINE_STATIC_CALL(name, func) MODLOAD__STATIC_CALL(name, func, __extension__(void *)(func))
#define DEFINE_STATIC_CALL_NULL(name, func) MODLOAD__STATIC_CALL(name, func, (void *)0)
#define DEFINE_STATIC_CALL_RET0(name, func) MODLOAD__STATIC_CALL(name, func, __extension__(void *)__static_call_return0)

/* The trampoline returns at first. The loader makes it jump to the key's function before any code of the module runs. */
#define MODLOAD__STATIC_CALL(name, func, target)                                                                     \
	DECLARE_STATIC_CALL(name, func);                                                                             \
	struct static_call_key STATIC_CALL_KEY(name) = { target, (void *)0 };                                        \
	__asm__(".pushsection .static_call.text, \"ax\", @progbits\n"                                                \
		"\t.balign 8\n"                                                                                      \
		"\t.globl __SCT__" #name "\n"                                                                        \
		"\t.hidden __SCT__" #name "\n"                                                                       \
		"\t.type __SCT__" #name ", @function\n"                                                              \
		"__SCT__" #name ":\n"                                                                                \
		"\t.cfi_startproc\n"                                                                                 \
		"\t.byte 0xc3, 0xcc, 0xcc, 0xcc, 0xcc, 0x0f, 0xb9, 0xcc\n"                                           \
		"\t.cfi_endproc\n"                                                                                   \
		"\t.size __SCT__" #name ", . - __SCT__" #name "\n"                                                   \
		"\t.popsection")

#define static_call(name) STATIC_CALL_TRAMP(name)
/* For calls whose function may be NULL. */
#define static_call_cond(name) static_call(name)

#define static_call_update(name, function)                                                                           \
	__extension__({                                                                                              \
		__typeof__(&STATIC_CALL_TRAMP(name)) modload__function = (function);                                 \
		__static_call_update(&STATIC_CALL_KEY(name), __extension__(void *)&STATIC_CALL_TRAMP(name),                     \
				     (void *)modload__function);                                                     \
	})

#define static_call_query(name) __atomic_load_n(&STATIC_CALL_KEY(name).func, __ATOMIC_ACQUIRE)

/* Other modules may call and update it. */
#define EXPORT_STATIC_CALL(name)                                                                                     \
	EXPORT_SYMBOL(__SCK__##name);                                                                        \
	EXPORT_SYMBOL(__SCT__##name)
#define EXPORT_STATIC_CALL_GPL(name)                                                                                 \
	EXPORT_SYMBOL_GPL(__SCK__##name);                                                                    \
	EXPORT_SYMBOL_GPL(__SCT__##name)
/* Other modules may only call it. */
#define EXPORT_STATIC_CALL_TRAMP(name)                                                                               \
	EXPORT_SYMBOL(__SCT__##name);                                                                      \
	MODLOAD__TRAMP_KEY(#name)
#define EXPORT_STATIC_CALL_TRAMP_GPL(name)                                                                           \
	EXPORT_SYMBOL_GPL(__SCT__##name);                                                                  \
	MODLOAD__TRAMP_KEY(#name)

#define MODLOAD__TRAMP_KEY(name)                                                                                     \
	__asm__(".pushsection .static_call_tramp_key, \"a\", @progbits\n"                                            \
		"\t.balign 4\n"                                                                                      \
		"\t.long __SCT__" name " - ., __SCK__" name " - .\n"                                                 \
		"\t.popsection")

#endif
