/* A disk behind virtio-blk: a raw image file or a block device, locked against a second writer. */
#ifndef VMM_BACKEND_DISK_H
#define VMM_BACKEND_DISK_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/uio.h>

enum { DISK_SECTOR = 512, DISK_ERR_MAX = 256 };

struct disk;

/* 0, or -errno with one sentence for the user in err. */
int disk_open(const char *path, bool readonly, struct disk **out, char err[DISK_ERR_MAX]);
void disk_close(struct disk *disk);

/* Bytes that the guest sees: the image's size rounded up to whole sectors.  The rounding reads as zeros until written. */
uint64_t disk_size(const struct disk *disk);
bool disk_readonly(const struct disk *disk);

/* All take ranges inside disk_size() and return 0 or -errno.  One thread at a time.  iov may have up to 1024 entries. */
int disk_read(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count);
int disk_write(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count);
/* What was written before is on stable storage after a 0.  A failure lasts: the host may have dropped the data. */
int disk_flush(struct disk *disk);
/* The range's content does not matter any more (a hint). */
int disk_discard(struct disk *disk, uint64_t offset, uint64_t len);
/* The range reads as zeros; with `unmap` its space may be given back. */
int disk_zero(struct disk *disk, uint64_t offset, uint64_t len, bool unmap);

#endif
