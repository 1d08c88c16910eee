/* A console back end: the host side of a serial port or of a virtio console.
 *
 * The device pulls input when it has room and pushes output; the back end never blocks the machine.  Any thread may call, with or
 * without vmm->lock (the back end's own lock is a leaf); on_input and on_room run on the main thread with vmm->lock held. */
#ifndef VMM_BACKEND_CONSOLE_H
#define VMM_BACKEND_CONSOLE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct vmm;
struct console;

#define CONSOLE_ERR_LEN 256

/* spec: "stdio", "pty", "file=PATH" or "none".  On failure NULL and one sentence in err. */
struct console *console_open(struct vmm *vmm, const char *spec, char err[CONSOLE_ERR_LEN]);
/* Writes out what is buffered (waiting at most a second), restores the terminal, frees. */
void console_close(struct console *con);
/* Prepares for the terminal's mode being restored when a signal kills the process.  Call it before an accelerator is opened,
 * which may install handlers of its own and pass on to these what is not for them. */
void console_guard_terminal(void);
/* Whether spec is well formed; says why not in err. */
bool console_spec_ok(const char *spec, char err[CONSOLE_ERR_LEN]);
/* Whether it could be opened, without doing so.  0, or -1 and err. */
int console_check(const char *spec, char err[CONSOLE_ERR_LEN]);

/* on_input: input has become available; on_room: output that did not fit can be tried again.  Either may be NULL. */
void console_attach(struct console *con, void (*on_input)(void *dev), void (*on_room)(void *dev), void *dev);

/* Takes up to len bytes of input; 0 when there is none now. */
size_t console_read(struct console *con, void *data, size_t len);
/* Queues output; returns how many of the len bytes were taken (fewer only when the peer does not read). */
size_t console_write(struct console *con, const void *data, size_t len);
/* Whether console_write would take a byte. */
bool console_has_room(struct console *con);
/* Sends queued output to the host now. */
void console_flush(struct console *con);

#endif
