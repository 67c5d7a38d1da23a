// SPDX-License-Identifier: MIT OR Apache-2.0
/*
 * modload/printk.h: lines for the log. pr_err, pr_warn, pr_notice and pr_info take what printf takes, and note a line in the host's
 * timeline as this module's own. As in Linux they begin with pr_fmt, which may be defined before this header is included:
 *
 *     #define pr_fmt(fmt) "greet: " fmt
 *     #include <modload/printk.h>
 *
 * Text is put together by vsnprintf, which the host has to offer (HostBuilder::process_symbols). Of a line 1023 bytes count; a
 * newline ends one, and the last need not have it.
 */
#ifndef MODLOAD_PRINTK_H
#define MODLOAD_PRINTK_H

#include <stdarg.h>

#include <modload/module.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Supplied by the host. The level is Linux's: 3 for an error, 4 for a warning, 5 for what is worth noting, 6 for the rest. */
void modload_log(const struct module *module, int level, const char *text);

#ifdef __cplusplus
}
#endif

#ifndef pr_fmt
#define pr_fmt(fmt) fmt
#endif

/* Formats are string literals. What is added to each, an empty string, is there so that a format alone will do in every standard. */
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
