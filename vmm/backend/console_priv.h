/* What the kinds of console back end share. */
#ifndef VMM_BACKEND_CONSOLE_PRIV_H
#define VMM_BACKEND_CONSOLE_PRIV_H

#include <pthread.h>

#include "vmm/backend/console.h"

enum { CONSOLE_INPUT = 4096, CONSOLE_OUTPUT = 65536 };

struct vmm_loop;
struct vmm_timer;

/* Fields: (o) set once before use, [l] guarded by lock, [m] main thread only. */
struct console {
  const struct console_kind *kind; /* (o) */
  struct vmm *vmm;                 /* (o) */
  struct vmm_loop *loop;           /* (o) */
  int in_fd, out_fd;               /* (o) -1: none */
  int keep_fd;                     /* (o) the pty's other side, held open; -1: none */
  bool own_in, own_out;            /* (o) close them */
  bool in_plain;                   /* (o) in_fd is a regular file or the like: always readable, not for epoll */
  bool escapes;                    /* (o) Ctrl-A is the escape key */
  bool drop;                       /* (o) output that nobody reads is dropped */
  pthread_mutex_t lock;
  uint8_t in[CONSOLE_INPUT];   /* [l] ring */
  size_t in_head, in_len;      /* [l] */
  bool in_watched, in_eof;     /* [l] */
  uint8_t out[CONSOLE_OUTPUT]; /* [l] flat, out_len bytes queued */
  size_t out_len;              /* [l] */
  bool out_blocked;            /* [l] out_fd is in the loop for EPOLLOUT */
  bool timer_armed;            /* [l] */
  bool starved;                /* [l] the device met a full queue and waits for on_room */
  bool escape_seen;            /* [m] */
  struct vmm_timer *timer;     /* (o) */
  void (*on_input)(void *dev); /* (o) */
  void (*on_room)(void *dev);  /* (o) */
  void *dev;                   /* (o) */
};

/* One kind of back end.  check: whether open would work, without doing it; may be NULL.  open: sets the descriptors and flags.
 * Both: -1 and err.  close may be NULL. */
struct console_kind {
  const char *name;
  bool takes_path;
  int (*check)(const char *path, char *err);
  int (*open)(struct console *con, const char *path, char *err);
  void (*close)(struct console *con);
};

extern const struct console_kind console_kind_stdio;
extern const struct console_kind console_kind_pty;
extern const struct console_kind console_kind_file;

int console_fail(char *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

#endif
