/* Raw disk images and block devices: opening with clear messages, locking, and positioned vectored I/O. */
#include "vmm/backend/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

enum { IOV_LIMIT = 1024, ZERO_CHUNK = 64 * 1024 };

struct disk {
  int fd;
  bool readonly, block_device;
  bool flush_failed;  /* a flush failed once: the host may have forgotten dirty data, so none succeeds any more */
  uint64_t file_size; /* bytes that exist in the file; grows to `size` when the last sector is written */
  uint64_t size;      /* rounded up to sectors */
};

/* ---- opening ---- */

static int refuse(char err[DISK_ERR_MAX], int error, const char *format, const char *path, const char *why) {
  snprintf(err, DISK_ERR_MAX, format, path, why);
  return -error;
}

static int open_file(struct disk *disk, const char *path, char err[DISK_ERR_MAX]) {
  /* O_NONBLOCK: a FIFO given by mistake must not hang us; for disks it means nothing. */
  disk->fd = open(path, (disk->readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC | O_NONBLOCK);
  if (disk->fd >= 0) return 0;
  int error = errno;
  struct stat st;
  if (error == EISDIR || (stat(path, &st) == 0 && S_ISDIR(st.st_mode)))
    return refuse(err, error, "The disk '%s' is a directory%s.", path, "");
  if (!disk->readonly && (error == EACCES || error == EROFS) && access(path, R_OK) == 0)
    return refuse(err, error, "The disk '%s' cannot be written (%s); add ',ro' to use it read-only.", path, strerror(error));
  return refuse(err, error, "The disk '%s' cannot be opened: %s.", path, strerror(error));
}

static int find_size(struct disk *disk, const char *path, char err[DISK_ERR_MAX]) {
  struct stat st;
  if (fstat(disk->fd, &st) < 0) return refuse(err, errno, "The disk '%s' cannot be examined: %s.", path, strerror(errno));
  disk->block_device = S_ISBLK(st.st_mode);
  if (S_ISREG(st.st_mode))
    disk->file_size = st.st_size;
  else if (disk->block_device ? ioctl(disk->fd, BLKGETSIZE64, &disk->file_size) < 0 : true)
    return refuse(err, EINVAL, "The disk '%s' is neither a file nor a block device%s.", path, "");
  if (!disk->file_size) return refuse(err, EINVAL, "The disk '%s' is empty%s.", path, "");
  if (disk->file_size > INT64_MAX - DISK_SECTOR) return refuse(err, EFBIG, "The disk '%s' is too large%s.", path, "");
  disk->size = (disk->file_size + DISK_SECTOR - 1) / DISK_SECTOR * DISK_SECTOR;
  return 0;
}

/* Reads the start of the disk: shows that it is readable at all, and that it is not an image format taken for a raw one. */
static int check_content(struct disk *disk, const char *path, char err[DISK_ERR_MAX]) {
  static const struct {
    const char *magic, *name;
  } formats[] = {{"QFI\xfb", "qcow2"}, {"KDMV", "VMDK"}, {"vhdxfile", "VHDX"}, {"QED", "QED"}, {"conectix", "VHD"}};
  char start[8] = {0};
  if (pread(disk->fd, start, sizeof start, 0) < 0)
    return refuse(err, errno, "The disk '%s' cannot be read: %s.", path, strerror(errno));
  for (unsigned i = 0; i < sizeof formats / sizeof formats[0]; i++)
    if (!memcmp(start, formats[i].magic, strlen(formats[i].magic)))
      return refuse(err, EINVAL,
                    "The disk '%s' is a %s image, and only raw images work: convert it with 'qemu-img convert -O raw'.", path,
                    formats[i].name);
  return 0;
}

/* Open file description locks also conflict inside one process, so the same image given twice is found too. */
static int lock_file(struct disk *disk, const char *path, char err[DISK_ERR_MAX]) {
  struct flock lock = {.l_type = disk->readonly ? F_RDLCK : F_WRLCK, .l_whence = SEEK_SET};
  if (fcntl(disk->fd, F_OFD_SETLK, &lock) == 0) return 0;
  int error = errno;
  if (error == EAGAIN || error == EACCES)
    return refuse(err, EBUSY, "The disk '%s' is in use already, by %s.", path,
                  disk->readonly ? "something that writes it" : "another virtual machine or as another disk of this one");
  if (error == EINVAL || error == ENOSYS || error == EOPNOTSUPP) return 0; /* a file system without locks */
  return refuse(err, error, "The disk '%s' cannot be locked: %s.", path, strerror(error));
}

int disk_open(const char *path, bool readonly, struct disk **out, char err[DISK_ERR_MAX]) {
  struct disk *disk = calloc(1, sizeof *disk);
  if (!disk) return refuse(err, ENOMEM, "No memory for the disk '%s'%s.", path, "");
  disk->readonly = readonly;
  int r = open_file(disk, path, err);
  if (r == 0) r = find_size(disk, path, err);
  if (r == 0) r = check_content(disk, path, err);
  if (r == 0) r = lock_file(disk, path, err);
  if (r < 0) {
    disk_close(disk);
    return r;
  }
  *out = disk;
  return 0;
}

void disk_close(struct disk *disk) {
  if (!disk) return;
  if (disk->fd >= 0) close(disk->fd);
  free(disk);
}

uint64_t disk_size(const struct disk *disk) {
  return disk->size;
}
bool disk_readonly(const struct disk *disk) {
  return disk->readonly;
}

/* ---- reading and writing ---- */

typedef ssize_t vector_fn(int fd, const struct iovec *iov, int count, off_t offset);

/* Drops the first n bytes of a vector. */
static void advance(struct iovec **iov, unsigned *count, size_t n) {
  while (*count && n >= (*iov)->iov_len) {
    n -= (*iov)->iov_len;
    ++*iov;
    --*count;
  }
  if (!n) return;
  (*iov)->iov_base = (uint8_t *)(*iov)->iov_base + n;
  (*iov)->iov_len -= n;
}

/* Moves everything, or up to the end of the file; returns the bytes moved or -errno. */
static int64_t transfer(struct disk *disk, vector_fn *fn, uint64_t offset, const struct iovec *iov, unsigned count) {
  struct iovec copy[IOV_LIMIT], *rest = copy;
  int64_t done = 0;
  if (count > IOV_LIMIT) return -EINVAL;
  memcpy(copy, iov, count * sizeof *iov);
  while (count) {
    ssize_t n = fn(disk->fd, rest, count, offset + done);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return -errno;
    if (n == 0) break;
    done += n;
    advance(&rest, &count, n);
  }
  return done;
}

static uint64_t total(const struct iovec *iov, unsigned count) {
  uint64_t len = 0;
  for (unsigned i = 0; i < count; i++) len += iov[i].iov_len;
  return len;
}

/* Clears a vector from byte `from` on. */
static void clear(const struct iovec *iov, unsigned count, uint64_t from) {
  for (unsigned i = 0; i < count; i++) {
    uint64_t skip = from < iov[i].iov_len ? from : iov[i].iov_len;
    memset((uint8_t *)iov[i].iov_base + skip, 0, iov[i].iov_len - skip);
    from -= skip;
  }
}

int disk_read(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count) {
  uint64_t want = total(iov, count);
  int64_t got = transfer(disk, preadv, offset, iov, count);
  if (got < 0) return got;
  if (got == want) return 0;
  /* Only the rounding of the last sector may be missing; a file that shrank under us is an error. */
  if (offset + got < disk->file_size) return -EIO;
  clear(iov, count, got);
  return 0;
}

int disk_write(struct disk *disk, uint64_t offset, const struct iovec *iov, unsigned count) {
  uint64_t want = total(iov, count);
  int64_t put = transfer(disk, pwritev, offset, iov, count);
  if (put < 0) return put;
  if (offset + put > disk->file_size) disk->file_size = offset + put;
  return put == want ? 0 : -EIO;
}

int disk_flush(struct disk *disk) {
  if (disk->flush_failed) return -EIO;
  if (disk->readonly || fdatasync(disk->fd) == 0) return 0;
  disk->flush_failed = true;
  return -errno;
}

/* ---- discarding and zeroing ---- */

static int allocate(struct disk *disk, int mode, uint64_t offset, uint64_t len) {
  int r;
  do r = fallocate(disk->fd, mode, offset, len);
  while (r < 0 && errno == EINTR);
  return r < 0 ? -errno : 0;
}

int disk_discard(struct disk *disk, uint64_t offset, uint64_t len) {
  int r = allocate(disk, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, offset, len);
  return r == -EOPNOTSUPP || r == -ENOSYS || r == -EINVAL ? 0 : r;
}

static int write_zeros(struct disk *disk, uint64_t offset, uint64_t len) {
  static const uint8_t zeros[ZERO_CHUNK];
  while (len) {
    struct iovec iov = {(void *)zeros, len < ZERO_CHUNK ? len : ZERO_CHUNK};
    int r = disk_write(disk, offset, &iov, 1);
    if (r < 0) return r;
    offset += iov.iov_len;
    len -= iov.iov_len;
  }
  return 0;
}

int disk_zero(struct disk *disk, uint64_t offset, uint64_t len, bool unmap) {
  int mode = unmap ? FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE : FALLOC_FL_ZERO_RANGE;
  /* The rounding of the last sector becomes part of the file with ZERO_RANGE, and stays a hole with PUNCH_HOLE. */
  int r = allocate(disk, mode, offset, len);
  if (r == -EOPNOTSUPP || r == -ENOSYS || r == -EINVAL) return write_zeros(disk, offset, len);
  if (r == 0 && !unmap && offset + len > disk->file_size) disk->file_size = offset + len;
  return r;
}
