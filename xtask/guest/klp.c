// The first and only process of the guest of `cargo xtask oracle-klp`. It performs the steps of /scenes with the
// modules of /ko, as Linux's own selftests do, and prints the log messages of Linux, each line after `KLP|`.
//
// tests/klp/scenes.txt describes each step.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/klog.h>
#include <sys/mount.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "guest.h"

enum { LIMIT = 120 * 1000, PAUSE = 20, MOST_WORDS = 8, CONSOLE_OFF = 6 };

static FILE *notes;
static int kmsg = -1;

static void note(const char *format, ...) __attribute__((format(printf, 1, 2)));
static void note(const char *format, ...)
{
	va_list arguments;
	va_start(arguments, format);
	vfprintf(notes, format, arguments);
	va_end(arguments);
	fputc('\n', notes);
}

// Records the log messages of live patching and of the scenes' modules since the last call. A record:
// `PRIORITY,..;TEXT` and more lines.
static void note_lines(void)
{
	char record[8192];
	ssize_t got;
	while ((got = read(kmsg, record, sizeof record - 1)) > 0) {
		record[got] = 0;
		char *text = strchr(record, ';');
		if (!text++)
			continue;
		text[strcspn(text, "\n")] = 0;
		bool ours = !strncmp(text, "livepatch: ", 11) || !strncmp(text, "klp_", 4);
		if (ours && !strstr(text, "taint"))
			note("%s", text);
	}
	if (errno != EAGAIN)
		fail("/dev/kmsg");
}

static char *path(const char *format, const char *first, const char *second)
{
	static char paths[2][512];
	static int next;
	next = !next;
	snprintf(paths[next], sizeof paths[next], format, first, second);
	return paths[next];
}

// Writes text to a file. Returns the errno.
static int put(const char *name, const char *text)
{
	int file = open(name, O_WRONLY | O_CLOEXEC), error = 0;
	if (file < 0)
		fail(name);
	if (write(file, text, strlen(text)) < 0)
		error = errno;
	close(file);
	return error;
}

// Reads the first line of a file. Returns false if the file does not exist.
static bool get(const char *name, char *line, int size)
{
	FILE *file = fopen(name, "r");
	if (!file)
		return false;
	if (!fgets(line, size, file))
		*line = 0;
	line[strcspn(line, "\n")] = 0;
	fclose(file);
	return true;
}

// Waits until a file has this line, or with NULL until the file does not exist.
static void wait_for(const char *name, const char *wanted)
{
	char line[256];
	for (int waited = 0; waited < LIMIT; waited += PAUSE) {
		bool there = get(name, line, sizeof line);
		if (wanted ? there && !strcmp(line, wanted) : !there)
			return;
		usleep(PAUSE * 1000);
	}
	errno = ETIMEDOUT;
	fail(name);
}

static int load(char **words, int count)
{
	char parameters[512] = "";
	for (int i = 2; i < count; i++)
		snprintf(parameters + strlen(parameters), sizeof parameters - strlen(parameters), "%s ", words[i]);
	char *name = path("/ko/%s.ko%s", words[1], "");
	int file = open(name, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		fail(name);
	int error = syscall(SYS_finit_module, file, parameters, 0) ? errno : 0;
	close(file);
	return error;
}

static void must(int error, const char *what)
{
	errno = error;
	if (error)
		fail(what);
}

static void unload(const char *module)
{
	for (int waited = 0; waited < LIMIT; waited += PAUSE) {
		if (!syscall(SYS_delete_module, module, O_NONBLOCK))
			return;
		if (errno != EAGAIN && errno != EBUSY)
			break;
		usleep(PAUSE * 1000);
	}
	fail(module);
}

static void note_live_patched(const char *name)
{
	char line[1024];
	FILE *file = fopen(name, "r");
	if (!file)
		fail(name);
	while (fgets(line, sizeof line, file)) {
		line[strcspn(line, "\n")] = 0;
		if (strstr(line, "live patched"))
			note("%s", line);
	}
	fclose(file);
}

static void step(char *line)
{
	char *words[MOST_WORDS] = { 0 }, *rest = line;
	int count = 0;
	while (count < MOST_WORDS && (words[count] = strsep(&rest, " ")))
		count++;
	const char *verb = words[0], *module = words[1];
	const char *patches = "/sys/kernel/livepatch/%s/%s";
	if (!strcmp(verb, "load")) {
		must(load(words, count), module);
		if (!access(path(patches, module, ""), F_OK))
			wait_for(path(patches, module, "transition"), "0");
	} else if (!strcmp(verb, "stuck")) {
		must(load(words, count), module);
		wait_for(path(patches, module, "transition"), "1");
	} else if (!strcmp(verb, "refused")) {
		int error = load(words, count);
		note_lines();
		note("%% errno %d", error);
	} else if (!strcmp(verb, "unload")) {
		unload(module);
	} else if (!strcmp(verb, "disable")) {
		must(put(path(patches, module, "enabled"), "0"), module);
		wait_for(path(patches, module, "enabled"), NULL);
	} else if (!strcmp(verb, "set")) {
		char folder[256];
		snprintf(folder, sizeof folder, "/sys/module/%s/parameters", module);
		must(put(path("%s/%s", folder, words[2]), words[3]), module);
	} else if (!strcmp(verb, "read")) {
		note_live_patched(path("/proc/%s%s", module, ""));
	} else if (!strcmp(verb, "show")) {
		char value[64];
		if (!get(path(patches, module, words[2]), value, sizeof value))
			fail(words[2]);
		note("%s", value);
	} else if (!strcmp(verb, "ftrace")) {
		bool off = !strcmp(module, "off");
		int error = put("/proc/sys/kernel/ftrace_enabled", off ? "0" : "1");
		if (off)
			note("%% errno %d", error);
		else
			must(error, "ftrace_enabled");
	} else {
		errno = EINVAL;
		fail(verb);
	}
}

int main(void)
{
	static char line[1024];
	char *text;
	size_t size;
	setvbuf(stdout, NULL, _IOLBF, 0);
	mount("proc", "/proc", "proc", 0, "");
	mount("sysfs", "/sys", "sysfs", 0, "");
	mount("devtmpfs", "/dev", "devtmpfs", 0, "");
	// Enable the debug messages of live patching, except those that depend on which thread happens to run.
	must(put("/proc/dynamic_debug/control", "file kernel/livepatch/* +p"), "dynamic debug");
	must(put("/proc/dynamic_debug/control", "func klp_try_switch_task -p"), "dynamic debug");
	notes = open_memstream(&text, &size);
	kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	FILE *scenes = fopen("/scenes", "r");
	if (!notes || kmsg < 0 || lseek(kmsg, 0, SEEK_END) < 0 || !scenes)
		fail("beginning");
	while (fgets(line, sizeof line, scenes)) {
		line[strcspn(line, "\n")] = 0;
		if (!*line || *line == '#')
			continue;
		bool begins = !strncmp(line, "scene ", 6);
		printf("ORACLE %s\n", line);
		note(begins ? "%s" : "%% %s", line);
		if (!begins)
			step(line);
		note_lines();
	}
	fclose(notes);
	// Keep messages of the kernel from appearing between the lines.
	klogctl(CONSOLE_OFF, NULL, 0);
	for (char *next = text, *each; (each = strsep(&next, "\n"));)
		if (*each)
			printf("KLP|%s\n", each);
	printf("ORACLE DONE\n");
	fflush(stdout);
	turn_off();
}
