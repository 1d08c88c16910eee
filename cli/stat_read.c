/* Statistics are files of the process that runs the machine (uvirt_stats.h): found among its descriptors, read without
 * stopping it. */
#include "cli/stat_read.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "uvirt_stats.h"

#define BLOCK_MAX UVIRT_STATS_SLOT

/* "kvm-PID" is a machine, "kvm-PID/vcpu-N" a vCPU (Documentation/virt/kvm/api.rst, KVM_GET_STATS_FD). */
static const char *owner_of(const char *id) {
  return strchr(id, '/') ? "vcpu" : "vm";
}

static struct stat_row *row_of(struct stat_sample *s, const char *owner, const char *name) {
  for (unsigned n = 0; n < s->n; n++)
    if (!strcmp(s->rows[n].owner, owner) && !strcmp(s->rows[n].name, name)) return &s->rows[n];
  if (s->n == STAT_ROWS_MAX) return NULL;
  struct stat_row *r = &s->rows[s->n++];
  memset(r, 0, sizeof(*r));
  snprintf(r->owner, sizeof(r->owner), "%s", owner);
  snprintf(r->name, sizeof(r->name), "%s", name);
  return r;
}

/* One description and its values; sums what has several (histograms are counts of events). */
static void add_stat(struct stat_sample *s, const char *owner, const struct kvm_stats_desc *d, const uint64_t *values) {
  struct stat_row *r = row_of(s, owner, d->name);
  if (!r) return;
  r->instant =
      (d->flags & KVM_STATS_TYPE_MASK) == KVM_STATS_TYPE_INSTANT || (d->flags & KVM_STATS_TYPE_MASK) == KVM_STATS_TYPE_PEAK;
  unsigned type = d->flags & KVM_STATS_TYPE_MASK;
  bool histogram = type == KVM_STATS_TYPE_LOG_HIST || type == KVM_STATS_TYPE_LINEAR_HIST;
  if ((d->flags & KVM_STATS_UNIT_MASK) == KVM_STATS_UNIT_SECONDS && !histogram) snprintf(r->unit, sizeof(r->unit), "ns");
  if ((d->flags & KVM_STATS_UNIT_MASK) == KVM_STATS_UNIT_BYTES) snprintf(r->unit, sizeof(r->unit), "bytes");
  for (unsigned n = 0; n < d->size; n++) r->value += values[n];
}

/* A block as its file shows it: what another program wrote there is not trusted. */
static void add_block(struct stat_sample *s, const unsigned char *b, size_t size) {
  struct kvm_stats_header h;
  if (size < sizeof(h)) return;
  memcpy(&h, b, sizeof(h));
  size_t step = sizeof(struct kvm_stats_desc) + h.name_size;
  if (!h.num_desc || h.name_size > 256 || h.id_offset > size || h.id_offset + h.name_size > size || h.desc_offset > size) return;
  if ((size - h.desc_offset) / step < h.num_desc || h.data_offset > size) return;
  char id[257];
  snprintf(id, sizeof(id), "%.*s", (int)h.name_size, (const char *)b + h.id_offset);
  const char *owner = owner_of(id);
  *(strcmp(owner, "vm") ? &s->vcpus : &s->vms) += 1;
  for (unsigned n = 0; n < h.num_desc; n++) {
    struct {
      struct kvm_stats_desc d;
      char name[257];
    } one;
    uint64_t values[64];
    memset(&one, 0, sizeof(one));
    memcpy(&one, b + h.desc_offset + n * step, step);
    size_t bytes = (size_t)one.d.size * 8, at = (size_t)h.data_offset + one.d.offset;
    if (bytes > sizeof(values) || at > size || size - at < bytes) continue;
    memcpy(values, b + at, bytes);
    add_stat(s, owner, &one.d, values);
  }
}

static void read_block(struct stat_sample *s, int fd, off_t at) {
  static unsigned char b[BLOCK_MAX];
  ssize_t n = pread(fd, b, sizeof(b), at);
  if (n > 0) add_block(s, b, (size_t)n);
}

/* Slots in use, holes skipped. */
static void read_arena(struct stat_sample *s, int fd) {
  for (off_t at = lseek(fd, 0, SEEK_DATA); at >= 0; at = lseek(fd, at, SEEK_DATA)) {
    at -= at % UVIRT_STATS_SLOT;
    read_block(s, fd, at);
    at += UVIRT_STATS_SLOT;
  }
}

enum kind { NOT_OURS, ARENA, BLOCK };

static enum kind kind_of(const char *link) {
  if (!strncmp(link, "/memfd:" UVIRT_STATS_FILE " ", sizeof("/memfd:" UVIRT_STATS_FILE))) return ARENA;
  return strncmp(link, "/memfd:" UVIRT_STATS_OWN_FILE " ", sizeof("/memfd:" UVIRT_STATS_OWN_FILE)) ? NOT_OURS : BLOCK;
}

struct found {
  ino_t inode[STAT_ROWS_MAX]; /* a client's descriptors show the same file again */
  unsigned n;
};

static bool seen(struct found *f, const char *path) {
  struct stat st;
  if (stat(path, &st)) return true;
  for (unsigned n = 0; n < f->n; n++)
    if (f->inode[n] == st.st_ino) return true;
  if (f->n < STAT_ROWS_MAX) f->inode[f->n++] = st.st_ino;
  return false;
}

/* s NULL: only whether there is one. */
static bool read_descriptor(struct stat_sample *s, struct found *f, const char *path) {
  char link[64];
  ssize_t n = readlink(path, link, sizeof(link) - 1);
  if (n < 0) return false;
  link[n] = 0;
  enum kind kind = kind_of(link);
  if (kind == NOT_OURS) return false;
  if (!s || seen(f, path)) return true;
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return false;
  if (kind == ARENA)
    read_arena(s, fd);
  else
    read_block(s, fd, 0);
  close(fd);
  return true;
}

static int scan(pid_t pid, struct stat_sample *s) {
  char path[320];
  struct found f = {.n = 0};
  bool any = false;
  snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
  DIR *d = opendir(path);
  if (!d) return errno == ENOENT ? -ESRCH : -errno;
  for (struct dirent *e; (e = readdir(d));) {
    snprintf(path, sizeof(path), "/proc/%d/fd/%s", (int)pid, e->d_name);
    if (read_descriptor(s, &f, path)) any = true;
    if (any && !s) break;
  }
  closedir(d);
  return any ? 0 : -ENOENT;
}

int stat_read(pid_t pid, struct stat_sample *s) {
  memset(s, 0, sizeof(*s));
  int r = scan(pid, s);
  return !r && !s->vms && !s->vcpus ? -ENOENT : r;
}

unsigned stat_processes(pid_t *pids, unsigned max) {
  unsigned n = 0;
  DIR *d = opendir("/proc");
  if (!d) return 0;
  for (struct dirent *e; (e = readdir(d));) {
    if (!isdigit((unsigned char)e->d_name[0])) continue;
    pid_t pid = (pid_t)atoi(e->d_name);
    if (scan(pid, NULL)) continue;
    if (n < max) pids[n] = pid;
    n++;
  }
  closedir(d);
  return n;
}
