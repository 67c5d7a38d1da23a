// Helpers for every guest program. The program is the first process of its machine, which is turned off when the
// program ends.

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <unistd.h>

// Turns the machine off.
static void turn_off(void)
{
	sync();
	reboot(RB_POWER_OFF);
	for (;;)
		pause();
}

// Prints the reason and turns the machine off. The host looks for this last line.
static void fail(const char *what)
{
	printf("ORACLE FAILED %s: %s\n", what, strerror(errno));
	turn_off();
}
