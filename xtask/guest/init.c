// The first and only process of the guest of `cargo xtask oracle`. It loads modules, then copies the kernel's own
// information and the memory of kernel and modules to a disk. It interprets as little as possible: the Rust code
// outside decides what the bytes mean.
//
// /before and /modules list module files, one per line: those that the disk needs, and those to compare.
// The disk receives chunks: a header of 512 bytes, `ORACLE1 LENGTH NAME\n` followed by zeros, and LENGTH bytes, padded
// to 512. Chunks of the same name belong together. The last chunk has the name `end`.

#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <dirent.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "guest.h"

enum { BLOCK = 512, CHUNK = 1 << 20 };

static int disk = -1;
static char chunk[CHUNK];

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time.tv_sec + time.tv_nsec / 1e9;
}

static void write_all(const char *bytes, size_t length)
{
	while (length) {
		ssize_t done = write(disk, bytes, length);
		if (done <= 0)
			fail("writing to the disk");
		bytes += done;
		length -= done;
	}
}

// Writes one chunk from the start of `chunk`.
static void put_chunk(const char *name, size_t length)
{
	char header[BLOCK] = { 0 };
	snprintf(header, sizeof header, "ORACLE1 %zu %s\n", length, name);
	write_all(header, sizeof header);
	size_t padded = (length + BLOCK - 1) / BLOCK * BLOCK;
	memset(chunk + length, 0, padded - length);
	write_all(chunk, padded);
}

// Reads up to `length` bytes. Reads fewer at the end of the file.
static size_t read_all(int file, char *to, size_t length)
{
	size_t done = 0;
	while (done < length) {
		ssize_t got = read(file, to + done, length - done);
		if (got < 0)
			fail("reading");
		if (got == 0)
			break;
		done += got;
	}
	return done;
}

static void put_file(const char *path)
{
	int file = open(path, O_RDONLY);
	if (file < 0)
		fail(path);
	for (size_t got; (got = read_all(file, chunk, CHUNK)) > 0;)
		put_chunk(path, got);
	close(file);
}

// Loads the modules of a list. Writes a line for each to a file: errno, milliseconds and path.
static void load(const char *list, FILE *results)
{
	char path[512];
	FILE *lines = fopen(list, "r");
	if (!lines)
		fail(list);
	while (fgets(path, sizeof path, lines)) {
		path[strcspn(path, "\n")] = 0;
		int file = open(path, O_RDONLY | O_CLOEXEC);
		if (file < 0)
			fail(path);
		printf("ORACLE LOADING %s\n", path);
		double start = now();
		int result = syscall(SYS_finit_module, file, "", 0) ? errno : 0;
		fprintf(results, "%d %.0f %s\n", result, (now() - start) * 1000, path);
		close(file);
	}
	fclose(lines);
}

// Writes a line `MODULE SECTION ADDRESS` for each file below /sys/module/*/sections.
static void put_sections(void)
{
	FILE *table = fopen("/sections", "w+");
	DIR *modules = opendir("/sys/module");
	if (!table || !modules)
		fail("/sys/module");
	for (struct dirent *module; (module = readdir(modules));) {
		char folder[600], path[1200], address[64];
		snprintf(folder, sizeof folder, "/sys/module/%s/sections", module->d_name);
		DIR *sections = opendir(folder);
		if (!sections)
			continue;
		for (struct dirent *section; (section = readdir(sections));) {
			if (!strcmp(section->d_name, ".") || !strcmp(section->d_name, ".."))
				continue;
			snprintf(path, sizeof path, "%s/%s", folder, section->d_name);
			int file = open(path, O_RDONLY);
			if (file < 0)
				fail(path);
			size_t got = read_all(file, address, sizeof address - 1);
			close(file);
			address[got] = 0;
			fprintf(table, "%s %s %s", module->d_name, section->d_name, address);
		}
		closedir(sections);
	}
	closedir(modules);
	fclose(table);
	put_file("/sections");
}

// Writes a range of the kernel's memory, as chunks named by the range's address.
static void put_memory(int kcore, const Elf64_Phdr *parts, size_t count, uint64_t from, uint64_t length)
{
	char name[64];
	snprintf(name, sizeof name, "memory %" PRIx64, from);
	for (size_t i = 0; i < count; i++) {
		if (parts[i].p_type != PT_LOAD || from < parts[i].p_vaddr || from - parts[i].p_vaddr >= parts[i].p_memsz)
			continue;
		if (lseek(kcore, parts[i].p_offset + (from - parts[i].p_vaddr), SEEK_SET) < 0)
			fail(name);
		while (length) {
			size_t wanted = length < CHUNK ? length : CHUNK;
			if (read_all(kcore, chunk, wanted) != wanted)
				fail(name);
			put_chunk(name, wanted);
			length -= wanted;
		}
		return;
	}
	errno = EFAULT;
	fail(name);
}

// Returns the address of a symbol of the kernel itself.
static uint64_t address_of(const char *symbol)
{
	char line[512], name[512];
	uint64_t address, found = 0;
	FILE *symbols = fopen("/proc/kallsyms", "r");
	while (!found && symbols && fgets(line, sizeof line, symbols))
		if (sscanf(line, "%" SCNx64 " %*c %511s", &address, name) == 2 && !strcmp(name, symbol))
			found = address;
	if (!found)
		fail(symbol);
	fclose(symbols);
	return found;
}

// Writes the memory of the kernel itself, then of each module.
static void put_memories(void)
{
	static Elf64_Phdr parts[64];
	Elf64_Ehdr header;
	int kcore = open("/proc/kcore", O_RDONLY);
	if (kcore < 0 || read_all(kcore, (char *)&header, sizeof header) != sizeof header)
		fail("/proc/kcore");
	size_t size = header.e_phnum * sizeof parts[0];
	if (size > sizeof parts || lseek(kcore, header.e_phoff, SEEK_SET) < 0 || read_all(kcore, (char *)parts, size) != size)
		fail("the header of /proc/kcore");
	uint64_t start = address_of("_text");
	put_memory(kcore, parts, header.e_phnum, start, address_of("_end") - start);
	// A line lists all users of a module, so it can be long.
	static char line[1 << 16];
	FILE *modules = fopen("/proc/modules", "r");
	while (modules && fgets(line, sizeof line, modules)) {
		uint64_t length, address;
		if (sscanf(line, "%*s %" SCNu64 " %*s %*s %*s %" SCNx64, &length, &address) != 2)
			fail(line);
		put_memory(kcore, parts, header.e_phnum, address, length);
	}
	close(kcore);
}

int main(void)
{
	setvbuf(stdout, NULL, _IOLBF, 0);
	mount("proc", "/proc", "proc", 0, "");
	mount("sysfs", "/sys", "sysfs", 0, "");
	mount("devtmpfs", "/dev", "devtmpfs", 0, "");
	FILE *results = fopen("/results", "w");
	if (!results)
		fail("/results");
	double start = now();
	printf("ORACLE BOOTED %.1f\n", start);
	load("/before", results);
	load("/modules", results);
	fclose(results);
	double loaded = now();
	printf("ORACLE LOADED %.1f\n", loaded - start);
	// Wait for work that modules have deferred, mainly the freeing of their init sections.
	sleep(3);
	disk = open("/dev/vda", O_RDWR);
	if (disk < 0)
		fail("/dev/vda");
	const char *files[] = { "/results", "/proc/modules", "/proc/kallsyms", "/proc/cpuinfo", "/proc/version",
				"/proc/cmdline" };
	for (size_t i = 0; i < sizeof files / sizeof files[0]; i++)
		put_file(files[i]);
	put_sections();
	put_memories();
	put_chunk("end", 0);
	if (fsync(disk))
		fail("the disk");
	printf("ORACLE DUMPED %.1f\n", now() - loaded);
	printf("ORACLE DONE\n");
	turn_off();
}
