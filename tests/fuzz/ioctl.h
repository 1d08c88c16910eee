/* What the parts of the ioctl fuzzer share: random choices, the client's memory, arguments. */
#ifndef TESTS_FUZZ_IOCTL_H
#define TESTS_FUZZ_IOCTL_H

#include "api/dispatch.h"

/* ---- choices: the input's bytes as long as there are any, then numbers that follow from them ---- */

struct source {
  const u8 *data;
  size_t left;
  u64 state;
};
u64 choose(struct source *s); /* any value */
size_t choose_below(struct source *s, size_t n);
u64 choose_odd(struct source *s); /* at which checks go wrong */
void choose_bytes(struct source *s, void *to, size_t len);

/* ---- memory of the client (ioctl_memory.c) ---- */

enum { PIECES = 16, WINDOWS = 8, PIECE_SIZE = 1 << 20, WINDOW_SIZE = 2 << 20 };

/* All addresses lie in one range in which nothing else is ever mapped, so that a guest or an ioctl that reaches memory which is
 * gone cannot reach the program's own. */
void memory_start(struct source *s);
void memory_end(void);
bool memory_contains(u64 addr, u64 len);
u8 *memory_piece(unsigned n);
u8 *memory_window(unsigned n); /* where vCPU descriptors are mapped */
u8 *memory_any(struct source *s);
/* Copies that tell of a bad address.  The thread sanitizer sees nothing of them: they are the client's races. */
bool memory_put(void *to, const void *from, size_t len);
bool memory_get(void *to, const void *from, size_t len);
/* Something happens to a piece: it goes, loses rights or contents, is replaced, its file is cut. */
void memory_disturb(struct source *s);

/* ---- guests (ioctl_guest.c) ---- */

/* Piece 0 is guest memory from address 0: descriptor and page tables, handlers. */
void guest_put_tables(void);
/* The vCPU begins anew, in some mode, perhaps with new code. */
void guest_restart(struct source *s, int vcpu);

/* ---- arguments (ioctl_args.c) ---- */

enum { ARG_ROOM = 16384, EVENTFDS = 6 };

struct caller {
  struct source source;
  u8 *room; /* ARG_ROOM bytes of this thread's own, and nothing behind them */
  const int *eventfds;
};
bool caller_start(struct caller *c);
void caller_end(struct caller *c);

/* First of all: collects the rows, and learns from the system descriptor what valid arguments look like. */
void args_learn(int system_fd);
void args_set_cpuid(int vcpu);
/* An argument for the row: valid, nearly valid, or nothing like it. */
void *args_make(struct caller *c, int fd, const struct ioctl_row *row);

/* All rows for one kind of descriptor. */
unsigned rows_of(enum fd_kind kind, const struct ioctl_row *const **rows);

#endif
