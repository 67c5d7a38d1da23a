// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * modload/printk.h: log lines. pr_err, pr_warn, pr_notice and pr_info take the arguments of printf, and add a line of this
 * module to the host's timeline. As in Linux each line begins with pr_fmt, which may be defined before this header is included:
 *
 *     #define pr_fmt(fmt) "greet: " fmt
 *     #include <modload/printk.h>
 *
 * Text is formatted by vsnprintf, which the host must offer (HostBuilder::process_symbols). Text is cut off after 1023 bytes.
 * A newline ends a line; the last line may omit it.
 */
#ifndef MODLOAD_PRINTK_H
#define MODLOAD_PRINTK_H

#include <stdarg.h>

#include <modload/module.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Provided by the host. The levels are Linux's: 3 for an error, 4 for a warning, 5 for a notice, 6 for information. */
void modload_log(const struct module *module, int level, const char *text);

#ifdef __cplusplus
}
#endif

#ifndef pr_fmt
#define pr_fmt(fmt) fmt
#endif

/* Formats are string literals. The added empty string makes a format without arguments valid in every C standard. */
#define pr_err(...) MODLOAD__LOG(3, __VA_ARGS__, "")
#define pr_warn(...) MODLOAD__LOG(4, __VA_ARGS__, "")
#define pr_notice(...) MODLOAD__LOG(5, __VA_ARGS__, "")
#define pr_info(...) MODLOAD__LOG(6, __VA_ARGS__, "")
#define MODLOAD__LOG(level, format, ...) modload__log(level, pr_fmt(format) "%s", __VA_ARGS__)

__attribute__((unused, noinline, format(printf, 2, 3))) static void modload__log(int level, const char *format, ...)
{
	char text[1024];
	va_list arguments;

	va_start(arguments, format);
	__builtin_vsnprintf(text, sizeof(text), format, arguments);
	va_end(arguments);
	modload_log(THIS_MODULE, level, text);
}

#endif
