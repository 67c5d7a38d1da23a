// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * modload/module.h: the header for writing a module, in C (gnu11 and later) or C++ (gnu++17 and later), for x86-64, with
 * gcc or clang. It needs no library and includes only freestanding headers. All names have the same meaning as in Linux.
 *
 *     cc -O2 -fPIC -fvisibility=hidden -I sdk/include -c greet.c
 *
 * In C++:
 *   - include the standard library's headers before this one: it defines __init and __exit, which libstdc++ uses as
 *     names of parameters;
 *   - declare exported symbols extern "C": the names of a module's symbols are not mangled.
 *
 * Names that begin with MODLOAD__ or modload__ are this header's own.
 */
#ifndef MODLOAD_MODULE_H
#define MODLOAD_MODULE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* ---- Language ---------------------------------------------------------------------------------------------- */

#ifdef __cplusplus
namespace modload__ {
template <class A, class B> struct same { enum { yes = 0 }; };
template <class A> struct same<A, A> { enum { yes = 1 }; };
}
#define MODLOAD__SAME(a, b) (modload__::same<a, b>::yes)
#define MODLOAD__ASSERT(condition, message) static_assert(condition, message)
#else
#define MODLOAD__SAME(a, b) __builtin_types_compatible_p(a, b)
#define MODLOAD__ASSERT(condition, message) _Static_assert(condition, message)
#endif

/* An alias copies the attributes of its target, where the compiler supports this, to avoid a warning. */
#ifdef __has_attribute
#if __has_attribute(copy)
#define MODLOAD__COPY(fn) __attribute__((copy(fn)))
#endif
#endif
#ifndef MODLOAD__COPY
#define MODLOAD__COPY(fn)
#endif

#define MODLOAD__GLUE(a, b) a##b
#define MODLOAD__UNIQUE(prefix, number) MODLOAD__GLUE(prefix, number)

#ifdef __cplusplus
extern "C" {
#endif

/* ---- The module itself ------------------------------------------------------------------------------------- */

#define MODULE_NAME_LEN 56

enum module_state {
	MODULE_STATE_LIVE,     /* init has returned */
	MODULE_STATE_COMING,   /* formed; init has not run */
	MODULE_STATE_GOING,    /* exit has run, or init has failed */
	MODULE_STATE_UNFORMED, /* being set up; never reported */
};

/*
 * A module, as visible to modules. The loader's own fields follow, so do not use sizeof. The loader writes the state whenever
 * it changes: if another thread may load or unload the module, read the state once, with __atomic_load_n.
 */
struct module {
	char name[MODULE_NAME_LEN];
	enum module_state state;
};

/* Provided by the loader: each module has its own. */
extern struct module __this_module;
#define THIS_MODULE (&__this_module)

/* The entry points of a module. The loader looks for these two symbols. Both are optional, and both may be hidden. */
int init_module(void);
void cleanup_module(void);

/* ---- Placement of code and data ---------------------------------------------------------------------------- */

/* Code and data that only init needs. They are freed when init has returned. */
#define __init __attribute__((section(".init.text")))
#define __initdata __attribute__((section(".init.data")))
/* Constants that only init needs. With -fPIC not for constants that hold pointers: compilers place those elsewhere. */
#define __initconst __attribute__((section(".init.rodata")))
/* Code that only exit needs. */
#define __exit __attribute__((section(".exit.text")))
/* Data that init writes and that is read-only afterwards. */
#define __ro_after_init __attribute__((section(".data..ro_after_init")))

/* ---- init and exit ----------------------------------------------------------------------------------------- */

/*
 * module_init(fn): fn is an int (*)(void) and is called once the module is formed; a negative error number refuses the load.
 * module_exit(fn): fn is a void (*)(void) and is called when the module is unloaded. Use each at most once in a module, after
 * the definition of fn, which is usually static.
 */
#ifdef __cplusplus
#define module_init(fn)                                                                                              \
	extern "C" __init int init_module(void)                                                                      \
	{                                                                                                            \
		int (*const init)(void) = fn;                                                                        \
		return init();                                                                                       \
	}                                                                                                            \
	static_assert(true, "")
#define module_exit(fn)                                                                                              \
	extern "C" __exit void cleanup_module(void)                                                                  \
	{                                                                                                            \
		void (*const exit)(void) = fn;                                                                       \
		exit();                                                                                              \
	}                                                                                                            \
	static_assert(true, "")
#else
#define module_init(fn)                                                                                              \
	MODLOAD__ASSERT(MODLOAD__SAME(__typeof__(&(fn)), int (*)(void)), "module_init takes an int (void)");         \
	int init_module(void) MODLOAD__COPY(fn) __attribute__((alias(#fn)))
#define module_exit(fn)                                                                                              \
	MODLOAD__ASSERT(MODLOAD__SAME(__typeof__(&(fn)), void (*)(void)), "module_exit takes a void (void)");        \
	void cleanup_module(void) MODLOAD__COPY(fn) __attribute__((alias(#fn)))
#endif

/* ---- Symbols for other modules ----------------------------------------------------------------------------- */

/*
 * EXPORT_SYMBOL(sym) exports a function or an object of this module under its own name, regardless of its visibility.
 * _GPL: only to modules with a licence compatible with the GPL. _NS: in a namespace (an identifier, without quotes), which
 * users must name with MODULE_IMPORT_NS.
 *
 * The record is a struct kernel_symbol of three 32-bit distances, each from the field itself: to the symbol, to its name and
 * to its namespace (0: none). No C expression has such a distance as its value in all code models, so assembler is used.
 */
#define EXPORT_SYMBOL(sym) MODLOAD__EXPORT(sym, #sym, "__ksymtab", "", "0")
#define EXPORT_SYMBOL_GPL(sym) MODLOAD__EXPORT(sym, #sym, "__ksymtab_gpl", "", "0")
#define EXPORT_SYMBOL_NS(sym, ns) MODLOAD__EXPORT_NS(sym, #sym, "__ksymtab", #ns)
#define EXPORT_SYMBOL_NS_GPL(sym, ns) MODLOAD__EXPORT_NS(sym, #sym, "__ksymtab_gpl", #ns)

#define MODLOAD__EXPORT_NS(sym, name, section, ns)                                                                   \
	MODLOAD__EXPORT(sym, name, section, ".L__kstrtabns_" name ":\t.asciz \"" ns "\"\n",                          \
			".L__kstrtabns_" name " - .")
#define MODLOAD__EXPORT(sym, name, section, ns_string, ns_distance)                                                  \
	MODLOAD__ASSERT(sizeof(&(sym)) == 8, name " is exported");                                                   \
	__asm__(".pushsection \"__ksymtab_strings\", \"a\", @progbits\n"                                             \
		".L__kstrtab_" name ":\t.asciz \"" name "\"\n"                                                       \
		ns_string                                                                                            \
		".popsection\n"                                                                                      \
		".pushsection \"" section "\", \"a\", @progbits\n"                                                   \
		"\t.balign 4\n"                                                                                      \
		"\t.long " name " - .\n"                                                                             \
		"\t.long .L__kstrtab_" name " - .\n"                                                                 \
		"\t.long " ns_distance "\n"                                                                          \
		".popsection\n")

/* ---- Information about the module -------------------------------------------------------------------------- */

/* Each adds a string tag=info to .modinfo. The info is one string literal, or several adjacent ones. */
#define MODULE_INFO(tag, info) MODLOAD__INFO(#tag "=" info)
#define MODLOAD__INFO(string)                                                                                        \
	static const char MODLOAD__UNIQUE(modload__info_, __COUNTER__)[]                                             \
		__attribute__((used, section(".modinfo"), aligned(1))) = string

/* The module's name. The default is the file's name without its extension. In Linux the build system sets the name. */
#define MODULE_NAME(string) MODULE_INFO(name, string)
/* "GPL", "GPL v2", "Dual MIT/GPL", "Proprietary", ... A module without a licence counts as proprietary. */
#define MODULE_LICENSE(string) MODULE_INFO(license, string)
/* "Name <address>"; may be repeated. */
#define MODULE_AUTHOR(string) MODULE_INFO(author, string)
#define MODULE_DESCRIPTION(string) MODULE_INFO(description, string)
#define MODULE_VERSION(string) MODULE_INFO(version, string)
/* Another name by which the module can be requested. */
#define MODULE_ALIAS(string) MODULE_INFO(alias, string)
/* Allows the module to use the symbols of a namespace (an identifier, without quotes). */
#define MODULE_IMPORT_NS(ns) MODULE_INFO(import_ns, #ns)
/* The description of a parameter. */
#define MODULE_PARM_DESC(parm, description) MODLOAD__INFO("parm=" #parm ":" description)

/* ---- Parameters -------------------------------------------------------------------------------------------- */

/* How values of a type are parsed and shown. The host defines the contents; modules only name these objects. */
struct kernel_param_ops;

/* A parameter of type string. */
struct kparam_string {
	unsigned int maxlen;
	char *string;
};

/* A parameter of type array. */
struct kparam_array {
	unsigned int max;
	unsigned int elemsize;
	unsigned int *num;
	const struct kernel_param_ops *ops;
	void *elem;
};

/* One parameter: a record of section __param. */
struct kernel_param {
	const char *name;
	struct module *mod;
	const struct kernel_param_ops *ops;
	uint16_t perm;
	int8_t level;
	uint8_t flags;
	union {
		void *arg;
		const struct kparam_string *str;
		const struct kparam_array *arr;
	};
};
MODLOAD__ASSERT(sizeof(struct kernel_param) == 40 && offsetof(struct kernel_param, arg) == 32, "struct kernel_param");
MODLOAD__ASSERT(sizeof(struct kparam_string) == 16, "struct kparam_string");
MODLOAD__ASSERT(sizeof(struct kparam_array) == 32, "struct kparam_array");

/* The parameter types and the C types of their variables. invbool stores the opposite of the given value. hexint is shown in
 * hexadecimal. charp points to the given text, which stays as long as the module. */
typedef bool modload__param_bool;
typedef bool modload__param_invbool;
typedef unsigned char modload__param_byte;
typedef short modload__param_short;
typedef unsigned short modload__param_ushort;
typedef int modload__param_int;
typedef unsigned int modload__param_uint;
typedef long modload__param_long;
typedef unsigned long modload__param_ulong;
typedef unsigned long long modload__param_ullong;
typedef unsigned int modload__param_hexint;
typedef char *modload__param_charp;

/* Provided by the host. */
extern const struct kernel_param_ops param_ops_bool, param_ops_invbool, param_ops_byte, param_ops_short,
	param_ops_ushort, param_ops_int, param_ops_uint, param_ops_long, param_ops_ulong, param_ops_ullong,
	param_ops_hexint, param_ops_charp, param_ops_string, param_array_ops;

/*
 * module_param(name, type, perm): makes the variable `name` of the given type a parameter. perm is like the mode of a file:
 * 0 for a parameter that can only be set when the module is loaded, 0444 for one that can be read, 0644 for one that can be
 * changed. The variable's C type is checked.
 */
#define module_param(name, type, perm)                                                                               \
	MODLOAD__PARAM_OF_TYPE(__param_##name, __param_str_##name, #name, name, modload__param_##type,               \
			       param_ops_##type, #type, perm)

/* module_param_named(name, variable, type, perm): like module_param, for a parameter with another name than its variable. */
#define module_param_named(name, variable, type, perm)                                                               \
	MODLOAD__PARAM_OF_TYPE(__param_##name, __param_str_##name, #name, variable, modload__param_##type,           \
			       param_ops_##type, #type, perm)

/* module_param_string(name, buffer, len, perm): text that is copied to a char buffer[len], including the closing NUL. */
#define module_param_string(name, buffer, len, perm)                                                                 \
	MODLOAD__ASSERT(MODLOAD__SAME(__typeof__(&(buffer)[0]), char *), #name ": not a buffer of char");            \
	MODLOAD__ASSERT(MODLOAD__SAME(__typeof__(buffer), char *) || (len) <= sizeof(buffer),                        \
			#name ": the buffer is shorter than that");                                                  \
	static const struct kparam_string __param_string_##name = { (len), (buffer) };                               \
	MODLOAD__PARAM(__param_##name, __param_str_##name, #name, param_ops_string, "string", perm,                  \
		       &__param_string_##name)

/*
 * module_param_array(name, type, nump, perm): values separated by commas, stored in the array `name`. *nump, an unsigned
 * int, receives their number (NULL: not needed).
 */
#define module_param_array(name, type, nump, perm)                                                                   \
	MODLOAD__PARAM_ARRAY(__param_##name, __param_str_##name, __param_arr_##name, #name, name,                    \
			     modload__param_##type, param_ops_##type, #type, nump, perm)

/* module_param_array_named(name, array, type, nump, perm): like module_param_array, with another name than the array's. */
#define module_param_array_named(name, array, type, nump, perm)                                                      \
	MODLOAD__PARAM_ARRAY(__param_##name, __param_str_##name, __param_arr_##name, #name, array,                   \
			     modload__param_##type, param_ops_##type, #type, nump, perm)

/* The outer macros use the type's name with # and ##: passed on as an argument, `bool` would be expanded to `_Bool`. */
#define MODLOAD__PARAM_OF_TYPE(record, text, name, variable, ctype, ops, type, perm)                                 \
	MODLOAD__ASSERT(MODLOAD__SAME(__typeof__(&(variable)), ctype *),                                             \
			name ": the variable is not of the parameter's type, " type);                                \
	MODLOAD__PARAM(record, text, name, ops, type, perm, &(variable))

#define MODLOAD__PARAM_ARRAY(record, text, array_record, name, array, ctype, ops, type, nump, perm)                  \
	MODLOAD__ASSERT(MODLOAD__SAME(__typeof__(&(array)[0]), ctype *),                                             \
			name ": the elements are not of the parameter's type, " type);                               \
	MODLOAD__ASSERT(!MODLOAD__SAME(__typeof__(array), ctype *), name ": a pointer is not an array");             \
	static const struct kparam_array array_record = { sizeof(array) / sizeof((array)[0]), sizeof((array)[0]),    \
							  (nump), &ops, (array) };                                   \
	MODLOAD__PARAM(record, text, name, param_array_ops, "array of " type, perm, &array_record)

#define MODLOAD__PARAM(record, text, name, ops, type, perm, argument)                                                \
	MODLOAD__ASSERT((perm) >= 0 && (perm) <= 0777 && ((perm) & 0002) == 0,                                       \
			name ": the permissions are octal, and not everyone may write");                             \
	static const char text[] = name;                                                                             \
	static const struct kernel_param record __attribute__((used, section("__param"), aligned(8))) = {            \
		text, THIS_MODULE, &ops, (perm), -1, 0, { (void *)(argument) }                                       \
	};                                                                                                           \
	MODLOAD__INFO("parmtype=" name ":" type)

/* ---- Notification about other modules ---------------------------------------------------------------------- */

/*
 * A callback on the chain of module notifiers. It is called with an enum module_state and the struct module * that enters that
 * state. A higher priority is called first; callbacks of equal priority are called in order of registration. The order is the
 * same in all states: the callback joins the chains as Order::same(priority). A callback that returns an error for COMING
 * refuses the load. In other states the return value is ignored.
 */
struct notifier_block {
	int (*notifier_call)(struct notifier_block *nb, unsigned long state, void *module);
	struct notifier_block *next; /* not used */
	int priority;
};

/* Return 0 or a negative error number. Register in init, unregister in exit: the block must not outlive its module. */
int register_module_notifier(struct notifier_block *nb);
int unregister_module_notifier(struct notifier_block *nb);

#define NOTIFY_DONE 0x0000      /* not interested */
#define NOTIFY_OK 0x0001        /* handled */
#define NOTIFY_STOP_MASK 0x8000 /* no further callback is called */
#define NOTIFY_BAD (NOTIFY_STOP_MASK | 0x0002)
#define NOTIFY_STOP (NOTIFY_STOP_MASK | NOTIFY_OK)

/* Convert an error number (negative, or 0 for success) to a callback's return value, and back. */
static inline int notifier_from_errno(int error)
{
	return error == 0 ? NOTIFY_OK : (NOTIFY_OK - error) | NOTIFY_STOP_MASK;
}

static inline int notifier_to_errno(int answer)
{
	int code = answer & ~NOTIFY_STOP_MASK;

	return code <= NOTIFY_OK ? 0 : NOTIFY_OK - code;
}

#ifdef __cplusplus
}
#endif

/* ---- Error numbers, as <errno.h> has them on x86-64 Linux -------------------------------------------------- */

#ifndef EPERM
#define EPERM 1
#endif
#ifndef ENOENT
#define ENOENT 2
#endif
#ifndef ESRCH
#define ESRCH 3
#endif
#ifndef EINTR
#define EINTR 4
#endif
#ifndef EIO
#define EIO 5
#endif
#ifndef ENXIO
#define ENXIO 6
#endif
#ifndef E2BIG
#define E2BIG 7
#endif
#ifndef ENOEXEC
#define ENOEXEC 8
#endif
#ifndef EBADF
#define EBADF 9
#endif
#ifndef EAGAIN
#define EAGAIN 11
#endif
#ifndef ENOMEM
#define ENOMEM 12
#endif
#ifndef EACCES
#define EACCES 13
#endif
#ifndef EFAULT
#define EFAULT 14
#endif
#ifndef EBUSY
#define EBUSY 16
#endif
#ifndef EEXIST
#define EEXIST 17
#endif
#ifndef ENODEV
#define ENODEV 19
#endif
#ifndef EINVAL
#define EINVAL 22
#endif
#ifndef ENOSPC
#define ENOSPC 28
#endif
#ifndef EPIPE
#define EPIPE 32
#endif
#ifndef EDOM
#define EDOM 33
#endif
#ifndef ERANGE
#define ERANGE 34
#endif
#ifndef EDEADLK
#define EDEADLK 35
#endif
#ifndef ENOSYS
#define ENOSYS 38
#endif
#ifndef ENODATA
#define ENODATA 61
#endif
#ifndef EPROTO
#define EPROTO 71
#endif
#ifndef EOVERFLOW
#define EOVERFLOW 75
#endif
#ifndef EOPNOTSUPP
#define EOPNOTSUPP 95
#endif
#ifndef ETIMEDOUT
#define ETIMEDOUT 110
#endif
#ifndef EALREADY
#define EALREADY 114
#endif
#ifndef EINPROGRESS
#define EINPROGRESS 115
#endif

#endif
