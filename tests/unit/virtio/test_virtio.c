/* The virtio devices through their PCI registers: negotiation, disks, entropy, console, user networking, misbehaving drivers. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netpacket/packet.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#include <linux/virtio_blk.h>
#include <linux/virtio_config.h>
#include <linux/virtio_console.h>
#include <linux/virtio_ids.h>
#include <linux/virtio_net.h>
#include <linux/virtio_pci.h>

#include "driver.h"
#include "vmm/backend/console.h"
#include "vmm/backend/slirp.h"
#include "vmm/virtio/virtio.h"

#define COMMON (1ull << VIRTIO_F_VERSION_1)
#define EVENTS (COMMON | 1ull << VIRTIO_RING_F_EVENT_IDX | 1ull << VIRTIO_RING_F_INDIRECT_DESC)

enum {
  DISK_BYTES = 64 * 1024 + 100,
  SECTORS = DISK_BYTES / 512 + 1,
  HEADER = DRIVER_DATA,
  STATUS = DRIVER_DATA + 0x100,
  BUFFER = DRIVER_DATA + 0x1000
};

struct bench {
  struct vmm *vmm;
  struct pci_host *host;
  struct driver d;
  char path[64];
  char err[VIRTIO_ERR_MAX];
};

/* ---- a console back end for the test ---- */

struct console {
  void (*on_input)(void *dev), (*on_room)(void *dev);
  void *dev;
  char in[256], out[8192];
  size_t in_len, out_len, out_room;
};

void console_attach(struct console *con, void (*on_input)(void *dev), void (*on_room)(void *dev), void *dev) {
  con->on_input = on_input;
  con->on_room = on_room;
  con->dev = dev;
}

size_t console_read(struct console *con, void *data, size_t len) {
  if (len > con->in_len) len = con->in_len;
  memcpy(data, con->in, len);
  memmove(con->in, con->in + len, con->in_len - len);
  con->in_len -= len;
  return len;
}

size_t console_write(struct console *con, const void *data, size_t len) {
  if (len > con->out_room) len = con->out_room;
  memcpy(con->out + con->out_len, data, len);
  con->out_len += len;
  con->out_room -= len;
  return len;
}

bool console_has_room(struct console *con) {
  return con->out_room;
}
void console_flush(struct console *con) {}

/* ---- fixtures ---- */

static int setup(void **state) {
  struct bench *b = calloc(1, sizeof *b);
  b->vmm = fake_vmm_create();
  b->host = pci_host_create(b->vmm);
  strcpy(b->path, "/tmp/uvirt-test-disk-XXXXXX");
  int fd = mkstemp(b->path);
  assert_true(fd >= 0);
  for (unsigned i = 0; i < DISK_BYTES; i++) {
    uint8_t byte = i / 512 + 1;
    assert_int_equal(pwrite(fd, &byte, 1, i), 1);
  }
  close(fd);
  *state = b;
  return 0;
}

static int teardown(void **state) {
  struct bench *b = *state;
  pci_host_destroy(b->host);
  fake_vmm_destroy(b->vmm);
  unlink(b->path);
  free(b);
  return 0;
}

static void open_disk(struct bench *b, bool readonly, bool msix) {
  const struct virtio_blk_options options = {.path = b->path, .readonly = readonly, .serial = "serial-7"};
  int r = virtio_blk_create(b->vmm, b->host, &options, b->err);
  if (r) fail_msg("%s", b->err);
  driver_open(&b->d, b->vmm, VIRTIO_ID_BLOCK, msix);
}

static uint8_t *ram(struct bench *b, uint64_t gpa) {
  return fake_ram(b->vmm, gpa);
}

/* One request; returns its status byte, or 255 if nothing came back. */
static unsigned request(struct bench *b, uint32_t type, uint64_t sector, uint32_t len, bool to_device) {
  struct virtio_blk_outhdr *header = (void *)ram(b, HEADER);
  struct vring_used_elem elem;
  struct vring_desc chain[3] = {{HEADER, sizeof *header, 0, 0}};
  unsigned n = 1;
  *header = (struct virtio_blk_outhdr){.type = type, .sector = sector};
  *ram(b, STATUS) = 0xff;
  if (len) chain[n++] = (struct vring_desc){BUFFER, len, to_device ? 0 : VRING_DESC_F_WRITE, 0};
  chain[n++] = (struct vring_desc){STATUS, 1, VRING_DESC_F_WRITE, 0};
  driver_offer(&b->d, 0, 0, chain, n);
  return driver_wait(&b->d, 0, &elem) ? *ram(b, STATUS) : 255;
}

/* ---- negotiation ---- */

static void test_features(void **state) {
  struct bench *b = *state;
  open_disk(b, false, true);
  uint64_t offered = driver_features(&b->d);
  assert_true(offered & COMMON);
  assert_true(offered >> VIRTIO_BLK_F_FLUSH & 1);
  assert_false(offered >> VIRTIO_BLK_F_RO & 1);
  assert_false(driver_start(&b->d, 0));                                         /* no VERSION_1 */
  assert_false(driver_start(&b->d, COMMON | 1ull << VIRTIO_F_ACCESS_PLATFORM)); /* not offered */
  assert_true(driver_start(&b->d, EVENTS));
  assert_int_equal(driver_status(&b->d), 15);
  assert_int_equal(driver_config(&b->d, 0, 8), SECTORS);
  fake_mmio_write(b->vmm, b->d.bar + VIRTIO_PCI_COMMON_STATUS, 1, 1); /* bits only ever get set */
  assert_int_equal(driver_status(&b->d), 15);
  driver_reset(&b->d);
  assert_int_equal(driver_status(&b->d), 0);
}

/* DRIVER_OK without FEATURES_OK does not start the device (3.1.1). */
static void test_order(void **state) {
  struct bench *b = *state;
  open_disk(b, false, true);
  fake_mmio_write(b->vmm, b->d.bar + VIRTIO_PCI_COMMON_STATUS, 7, 1);
  assert_int_equal(driver_status(&b->d) & VIRTIO_CONFIG_S_DRIVER_OK, 0);
}

static void test_registers(void **state) {
  struct bench *b = *state;
  open_disk(b, false, true);
  uint64_t common = b->d.bar;
  fake_mmio_write(b->vmm, common + VIRTIO_PCI_COMMON_Q_SELECT, 5, 2); /* no such queue */
  assert_int_equal(fake_mmio_read(b->vmm, common + VIRTIO_PCI_COMMON_Q_SIZE, 2), 0);
  fake_mmio_write(b->vmm, common + VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2);
  fake_mmio_write(b->vmm, common + VIRTIO_PCI_COMMON_Q_DESCLO, 1, 4);
  fake_mmio_write(b->vmm, common + VIRTIO_PCI_COMMON_Q_SELECT, 0, 2);
  fake_mmio_write(b->vmm, common + VIRTIO_PCI_COMMON_Q_SIZE, 24, 2); /* no power of two */
  assert_int_equal(fake_mmio_read(b->vmm, common + VIRTIO_PCI_COMMON_Q_SIZE, 2), 256);
  fake_mmio_write(b->vmm, common + VIRTIO_PCI_COMMON_Q_MSIX, 2, 2); /* there are vectors 0 and 1 */
  assert_int_equal(fake_mmio_read(b->vmm, common + VIRTIO_PCI_COMMON_Q_MSIX, 2), VIRTIO_MSI_NO_VECTOR);
  fake_mmio_write(b->vmm, common + VIRTIO_PCI_COMMON_Q_USEDLO, 0x123456789abcdef0ull, 8);
  assert_int_equal(fake_mmio_read(b->vmm, common + VIRTIO_PCI_COMMON_Q_USEDHI, 4), 0x12345678);
  for (unsigned at = 0; at < 0x4000; at += 7) { /* odd accesses do nothing bad */
    fake_mmio_read(b->vmm, common + at, 2);
    fake_mmio_write(b->vmm, common + at, 0xff, 2);
  }
}

/* 4.1.4.9: the window in config space reaches the BAR. */
static void test_config_window(void **state) {
  struct bench *b = *state;
  open_disk(b, false, true);
  unsigned cap = fake_config_read(b->vmm, b->d.slot, 0x34, 1);
  while (fake_config_read(b->vmm, b->d.slot, cap, 1) != 9 ||
         fake_config_read(b->vmm, b->d.slot, cap + 3, 1) != VIRTIO_PCI_CAP_PCI_CFG)
    cap = fake_config_read(b->vmm, b->d.slot, cap + 1, 1);
  fake_config_write(b->vmm, b->d.slot, cap + 4, 0, 1);
  fake_config_write(b->vmm, b->d.slot, cap + 8, VIRTIO_PCI_COMMON_NUMQ, 4);
  fake_config_write(b->vmm, b->d.slot, cap + 12, 2, 4);
  assert_int_equal(fake_config_read(b->vmm, b->d.slot, cap + 16, 2), 1);
  fake_config_write(b->vmm, b->d.slot, cap + 8, VIRTIO_PCI_COMMON_STATUS, 4);
  fake_config_write(b->vmm, b->d.slot, cap + 12, 1, 4);
  fake_config_write(b->vmm, b->d.slot, cap + 16, 3, 1);
  assert_int_equal(driver_status(&b->d), 3);
  fake_config_write(b->vmm, b->d.slot, cap + 4, 0xff, 1); /* a BAR that does not exist */
  fake_config_write(b->vmm, b->d.slot, cap + 8, 0xfffffff0, 4);
  fake_config_read(b->vmm, b->d.slot, cap + 16, 4);
}

/* ---- the disk ---- */

static void test_disk(void **state) {
  struct bench *b = *state;
  open_disk(b, false, true);
  assert_true(driver_start(&b->d, EVENTS | 1ull << VIRTIO_BLK_F_FLUSH));
  assert_int_equal(request(b, VIRTIO_BLK_T_IN, 3, 1024, false), VIRTIO_BLK_S_OK);
  assert_int_equal(ram(b, BUFFER)[0], 4);
  assert_int_equal(ram(b, BUFFER)[512], 5);
  assert_true(fake_msi_wait(b->vmm, DRIVER_VECTOR_DATA + 1, 1));
  memset(ram(b, BUFFER), 0xaa, 4096);
  assert_int_equal(request(b, VIRTIO_BLK_T_OUT, 8, 4096, true), VIRTIO_BLK_S_OK);
  assert_int_equal(request(b, VIRTIO_BLK_T_FLUSH, 0, 0, true), VIRTIO_BLK_S_OK);
  memset(ram(b, BUFFER), 0, 4096);
  assert_int_equal(request(b, VIRTIO_BLK_T_IN, 8, 4096, false), VIRTIO_BLK_S_OK);
  assert_int_equal(ram(b, BUFFER)[4095], 0xaa);
  assert_int_equal(request(b, VIRTIO_BLK_T_GET_ID, 0, 20, false), VIRTIO_BLK_S_OK);
  assert_string_equal((char *)ram(b, BUFFER), "serial-7");
  assert_int_equal(request(b, 77, 0, 512, false), VIRTIO_BLK_S_UNSUPP);
  assert_int_equal(request(b, VIRTIO_BLK_T_IN, SECTORS, 512, false), VIRTIO_BLK_S_IOERR);
  assert_int_equal(request(b, VIRTIO_BLK_T_IN, UINT64_MAX, 512, false), VIRTIO_BLK_S_IOERR);
  assert_int_equal(request(b, VIRTIO_BLK_T_IN, 0, 100, false), VIRTIO_BLK_S_IOERR);
  assert_int_equal(request(b, VIRTIO_BLK_T_OUT, SECTORS - 1, 1024, true), VIRTIO_BLK_S_IOERR);
}

/* The last sector is half there: the missing part reads as zeros, and comes into being when written. */
static void test_disk_tail(void **state) {
  struct bench *b = *state;
  struct stat st;
  open_disk(b, false, true);
  assert_true(driver_start(&b->d, COMMON));
  memset(ram(b, BUFFER), 0xee, 512);
  assert_int_equal(request(b, VIRTIO_BLK_T_IN, SECTORS - 1, 512, false), VIRTIO_BLK_S_OK);
  assert_int_equal(ram(b, BUFFER)[99], SECTORS & 0xff);
  assert_int_equal(ram(b, BUFFER)[100], 0);
  assert_int_equal(ram(b, BUFFER)[511], 0);
  assert_int_equal(request(b, VIRTIO_BLK_T_OUT, SECTORS - 1, 512, true), VIRTIO_BLK_S_OK);
  assert_int_equal(stat(b->path, &st), 0);
  assert_int_equal(st.st_size, SECTORS * 512);
}

static void test_disk_readonly(void **state) {
  struct bench *b = *state;
  open_disk(b, true, true);
  assert_true(driver_features(&b->d) >> VIRTIO_BLK_F_RO & 1);
  assert_true(driver_start(&b->d, COMMON));
  assert_int_equal(request(b, VIRTIO_BLK_T_OUT, 0, 512, true), VIRTIO_BLK_S_IOERR);
  assert_int_equal(request(b, VIRTIO_BLK_T_IN, 0, 512, false), VIRTIO_BLK_S_OK);
  assert_int_equal(ram(b, BUFFER)[0], 1);
}

static void test_disk_ranges(void **state) {
  struct bench *b = *state;
  struct virtio_blk_discard_write_zeroes *range = (void *)ram(b, BUFFER);
  open_disk(b, false, true);
  assert_true(driver_start(&b->d, EVENTS | 1ull << VIRTIO_BLK_F_DISCARD | 1ull << VIRTIO_BLK_F_WRITE_ZEROES));
  *range = (struct virtio_blk_discard_write_zeroes){.sector = 16, .num_sectors = 3, .flags = 0};
  assert_int_equal(request(b, VIRTIO_BLK_T_WRITE_ZEROES, 0, sizeof *range, true), VIRTIO_BLK_S_OK);
  assert_int_equal(request(b, VIRTIO_BLK_T_IN, 15, 5 * 512, false), VIRTIO_BLK_S_OK);
  assert_int_equal(ram(b, BUFFER)[0], 16);
  assert_int_equal(ram(b, BUFFER)[512], 0);
  assert_int_equal(ram(b, BUFFER)[4 * 512 - 1], 0);
  assert_int_equal(ram(b, BUFFER)[4 * 512], 20);
  *range = (struct virtio_blk_discard_write_zeroes){.sector = 0, .num_sectors = 8, .flags = 1};
  assert_int_equal(request(b, VIRTIO_BLK_T_WRITE_ZEROES, 0, sizeof *range, true), VIRTIO_BLK_S_OK);
  assert_int_equal(request(b, VIRTIO_BLK_T_DISCARD, 0, sizeof *range, true), VIRTIO_BLK_S_UNSUPP);
  range->flags = 0;
  assert_int_equal(request(b, VIRTIO_BLK_T_DISCARD, 0, sizeof *range, true), VIRTIO_BLK_S_OK);
  range->sector = SECTORS - 1;
  assert_int_equal(request(b, VIRTIO_BLK_T_DISCARD, 0, sizeof *range, true), VIRTIO_BLK_S_IOERR);
  assert_int_equal(request(b, VIRTIO_BLK_T_DISCARD, 0, sizeof *range - 1, true), VIRTIO_BLK_S_IOERR);
}

static int check_disk(struct bench *b, const char *path, bool readonly) {
  const struct virtio_blk_options options = {.path = path, .readonly = readonly};
  b->err[0] = 0;
  return virtio_blk_check(&options, b->err);
}

static void test_disk_errors(void **state) {
  struct bench *b = *state;
  assert_int_equal(check_disk(b, "/nonexistent/disk", false), -ENOENT);
  assert_int_equal(check_disk(b, "/tmp", false), -EISDIR);
  assert_non_null(strstr(b->err, "is a directory"));
  assert_true(check_disk(b, "/dev/null", false) < 0);
  assert_int_equal(check_disk(b, b->path, false), 0);
  open_disk(b, true, true);
  assert_int_equal(check_disk(b, b->path, true), 0); /* readers share */
  assert_int_equal(check_disk(b, b->path, false), -EBUSY);
  assert_non_null(strstr(b->err, "in use"));
  assert_int_equal(truncate(b->path, 0), 0);
  assert_int_equal(check_disk(b, b->path, true), -EINVAL);
  assert_non_null(strstr(b->err, "empty"));
  int fd = open(b->path, O_WRONLY);
  assert_int_equal(pwrite(fd, "QFI\xfb", 4, 0), 4);
  close(fd);
  assert_int_equal(check_disk(b, b->path, true), -EINVAL);
  assert_non_null(strstr(b->err, "qcow2"));
}

static void test_disk_intx(void **state) {
  struct bench *b = *state;
  open_disk(b, false, false);
  unsigned gsi = pci_intx_gsi(b->d.slot, 0);
  assert_true(driver_start(&b->d, COMMON));
  assert_int_equal(request(b, VIRTIO_BLK_T_IN, 0, 512, false), VIRTIO_BLK_S_OK);
  for (unsigned i = 0; i < 100000 && !fake_level(b->vmm, gsi); i++) usleep(100);
  assert_true(fake_level(b->vmm, gsi));
  assert_int_equal(driver_isr(&b->d), 1);
  assert_false(fake_level(b->vmm, gsi));
  assert_int_equal(driver_isr(&b->d), 0);
}

/* RAM above 4 GiB, and a buffer that ends in a hole. */
static void test_disk_memory(void **state) {
  struct bench *b = *state;
  struct virtio_blk_outhdr *header = (void *)ram(b, HEADER);
  struct vring_used_elem elem;
  open_disk(b, false, true);
  assert_true(driver_start(&b->d, EVENTS));
  *header = (struct virtio_blk_outhdr){.type = VIRTIO_BLK_T_IN, .sector = 2};
  struct vring_desc chain[] = {
      {HEADER, 16, 0, 0}, {FAKE_HIGH_BASE + 512, 512, VRING_DESC_F_WRITE, 0}, {STATUS, 1, VRING_DESC_F_WRITE, 0}};
  driver_offer(&b->d, 0, 0, chain, 3);
  assert_true(driver_wait(&b->d, 0, &elem));
  assert_int_equal(elem.len, 513);
  assert_int_equal(ram(b, FAKE_HIGH_BASE + 512)[0], 3);
  chain[1].addr = FAKE_LOW_RAM - 100;
  driver_offer(&b->d, 0, 0, chain, 3);
  assert_true(fake_msi_wait(b->vmm, DRIVER_VECTOR_DATA, 1));
  assert_true(driver_status(&b->d) & VIRTIO_CONFIG_S_NEEDS_RESET);
}

/* After a broken chain the device asks for a reset, and works again after one. */
static void test_needs_reset(void **state) {
  struct bench *b = *state;
  struct vring_desc status_only[] = {{STATUS, 1, VRING_DESC_F_WRITE, 0}};
  open_disk(b, false, true);
  assert_true(driver_start(&b->d, COMMON));
  driver_offer(&b->d, 0, 0, status_only, 1);
  assert_true(fake_msi_wait(b->vmm, DRIVER_VECTOR_DATA, 1));
  assert_int_equal(driver_status(&b->d), 15 | VIRTIO_CONFIG_S_NEEDS_RESET);
  assert_false(driver_used(&b->d, 0));
  assert_true(driver_start(&b->d, COMMON));
  assert_int_equal(request(b, VIRTIO_BLK_T_IN, 0, 512, false), VIRTIO_BLK_S_OK);
}

/* A queue that is not in memory is found when the driver is ready. */
static void test_bad_queue(void **state) {
  struct bench *b = *state;
  open_disk(b, false, true);
  uint64_t common = b->d.bar;
  fake_mmio_write(b->vmm, common + VIRTIO_PCI_COMMON_STATUS, 3, 1);
  fake_mmio_write(b->vmm, common + VIRTIO_PCI_COMMON_GFSELECT, 1, 4);
  fake_mmio_write(b->vmm, common + VIRTIO_PCI_COMMON_GF, 1, 4);
  fake_mmio_write(b->vmm, common + VIRTIO_PCI_COMMON_STATUS, 11, 1);
  fake_mmio_write(b->vmm, common + VIRTIO_PCI_COMMON_Q_SELECT, 0, 2);
  fake_mmio_write(b->vmm, common + VIRTIO_PCI_COMMON_Q_DESCLO, 0x7fffffff0000ull, 8);
  fake_mmio_write(b->vmm, common + VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2);
  fake_mmio_write(b->vmm, common + VIRTIO_PCI_COMMON_STATUS, 15, 1);
  assert_true(driver_status(&b->d) & VIRTIO_CONFIG_S_NEEDS_RESET);
}

/* Resets while requests are under way: when the status reads 0, the device does not touch memory any more. */
static void test_reset_in_flight(void **state) {
  struct bench *b = *state;
  struct virtio_blk_outhdr *header = (void *)ram(b, HEADER);
  open_disk(b, false, true);
  for (unsigned round = 0; round < 200; round++) {
    assert_true(driver_start(&b->d, round & 1 ? EVENTS : COMMON));
    *header = (struct virtio_blk_outhdr){.type = VIRTIO_BLK_T_IN};
    struct vring_desc chain[] = {
        {HEADER, 16, 0, 0}, {BUFFER, 32 * 1024, VRING_DESC_F_WRITE, 0}, {STATUS, 1, VRING_DESC_F_WRITE, 0}};
    for (unsigned i = 0; i < 5; i++) driver_offer(&b->d, 0, 3 * i, chain, 3);
    if (round % 3 == 0) usleep(round);
    if (round % 5 == 0)
      fake_reset(b->vmm);
    else
      driver_reset(&b->d);
    if (round % 5 == 0) driver_open(&b->d, b->vmm, VIRTIO_ID_BLOCK, true);
    memset(ram(b, BUFFER), 0x5a, 32 * 1024);
    usleep(round % 7 * 20);
    for (unsigned i = 0; i < 32 * 1024; i += 512) assert_int_equal(ram(b, BUFFER)[i], 0x5a);
  }
  assert_true(driver_start(&b->d, COMMON));
  assert_int_equal(request(b, VIRTIO_BLK_T_IN, 0, 512, false), VIRTIO_BLK_S_OK);
}

/* ---- entropy ---- */

static void test_rng(void **state) {
  struct bench *b = *state;
  static const uint8_t zeros[64];
  struct vring_used_elem elem;
  struct vring_desc buffer[] = {{BUFFER, 64, VRING_DESC_F_WRITE, 0}};
  assert_int_equal(virtio_rng_create(b->vmm, b->host, b->err), 0);
  driver_open(&b->d, b->vmm, VIRTIO_ID_RNG, true);
  assert_true(driver_start(&b->d, EVENTS));
  driver_offer(&b->d, 0, 0, buffer, 1);
  fake_loop_turn(b->vmm);
  assert_true(driver_wait(&b->d, 0, &elem));
  assert_int_equal(elem.len, 64);
  assert_memory_not_equal(ram(b, BUFFER), zeros, 64);
  assert_int_equal(fake_msi_count(b->vmm, DRIVER_VECTOR_DATA + 1), 1);
}

/* ---- console ---- */

static void test_console(void **state) {
  struct bench *b = *state;
  struct console con = {.out_room = sizeof con.out};
  const struct virtio_console_options options = {.console = &con, .columns = 80, .rows = 25};
  struct virtio_console *device;
  struct vring_used_elem elem;
  assert_int_equal(virtio_console_create(b->vmm, b->host, &options, &device, b->err), 0);
  driver_open(&b->d, b->vmm, VIRTIO_ID_CONSOLE, true);
  assert_true(driver_start(&b->d, EVENTS | 1ull << VIRTIO_CONSOLE_F_SIZE));
  assert_int_equal(driver_config(&b->d, 0, 2), 80);

  memcpy(ram(b, BUFFER), "hello, world", 12);
  driver_offer(&b->d, 1, 0, (struct vring_desc[]){{BUFFER, 5, 0, 0}, {BUFFER + 5, 7, 0, 0}}, 2);
  fake_loop_turn(b->vmm);
  assert_true(driver_wait(&b->d, 1, &elem));
  assert_memory_equal(con.out, "hello, world", 12);

  /* A host that takes only part of it: the rest goes out when there is room, and nothing twice. */
  con.out_len = 0;
  con.out_room = 7;
  driver_offer(&b->d, 1, 0, (struct vring_desc[]){{BUFFER, 12, 0, 0}}, 1);
  fake_loop_turn(b->vmm);
  assert_false(driver_used(&b->d, 1));
  con.out_room = 100;
  vmm_lock(b->vmm);
  con.on_room(con.dev);
  vmm_unlock(b->vmm);
  assert_true(driver_wait(&b->d, 1, &elem));
  assert_int_equal(con.out_len, 12);
  assert_memory_equal(con.out, "hello, world", 12);

  /* Input that waits for buffers. */
  memcpy(con.in, "typed", 5);
  con.in_len = 5;
  vmm_lock(b->vmm);
  con.on_input(con.dev);
  vmm_unlock(b->vmm);
  driver_offer(&b->d, 0, 0, (struct vring_desc[]){{BUFFER, 3, VRING_DESC_F_WRITE, 0}}, 1);
  driver_offer(&b->d, 0, 1, (struct vring_desc[]){{BUFFER + 3, 3, VRING_DESC_F_WRITE, 0}}, 1);
  fake_loop_turn(b->vmm);
  assert_true(driver_wait(&b->d, 0, &elem));
  assert_int_equal(elem.len, 3);
  assert_true(driver_wait(&b->d, 0, &elem));
  assert_int_equal(elem.len, 2);
  assert_memory_equal(ram(b, BUFFER), "typed", 5);

  vmm_lock(b->vmm);
  virtio_console_resize(device, 132, 50);
  vmm_unlock(b->vmm);
  assert_int_equal(driver_config(&b->d, 0, 4), 50 << 16 | 132);
  assert_int_equal(fake_msi_count(b->vmm, DRIVER_VECTOR_DATA), 1);
}

/* ---- networking ---- */

enum { RX_BUFFERS = 8, RX_SIZE = 128 };

/* An ARP request for 10.0.2.2, behind a virtio-net header. */
static unsigned put_arp(uint8_t *at) {
  static const uint8_t arp[] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x52, 0x54, 0,    0x12, 0x34, 0x56, 0x08, 0x06,
                                0,    1,    8,    0,    6,    4,    0,    1,    0x52, 0x54, 0,    0x12, 0x34, 0x56,
                                10,   0,    2,    15,   0,    0,    0,    0,    0,    0,    10,   0,    2,    2};
  memset(at, 0, 12);
  memcpy(at + 12, arp, sizeof arp);
  return 12 + sizeof arp;
}

static void offer_receive(struct bench *b, unsigned i, unsigned len) {
  driver_offer(&b->d, 0, i, (struct vring_desc[]){{BUFFER + 0x1000 + i * RX_SIZE, len, VRING_DESC_F_WRITE, 0}}, 1);
}

static void test_net_arp(void **state) {
  struct bench *b = *state;
  const struct virtio_net_options options = {.spec = "user"};
  struct vring_used_elem elem;
  if (virtio_net_create(b->vmm, b->host, &options, b->err)) fail_msg("%s", b->err);
  driver_open(&b->d, b->vmm, VIRTIO_ID_NET, true);
  assert_int_equal(driver_config(&b->d, 0, 4), 0x12005452);
  assert_int_equal(driver_config(&b->d, 6, 2), VIRTIO_NET_S_LINK_UP);
  for (unsigned mergeable = 0; mergeable < 2; mergeable++) {
    unsigned size = mergeable ? 40 : RX_SIZE; /* the answer is 12 + 42 (or padded 60) bytes */
    assert_true(driver_start(&b->d, EVENTS | (uint64_t)mergeable << VIRTIO_NET_F_MRG_RXBUF));
    unsigned len = put_arp(ram(b, BUFFER));
    driver_offer(&b->d, 1, 0, (struct vring_desc[]){{BUFFER, 10, 0, 0}, {BUFFER + 10, len - 10, 0, 0}}, 2);
    assert_true(driver_wait(&b->d, 1, &elem));
    usleep(2000); /* the answer waits in the backlog */
    for (unsigned i = 0; i < RX_BUFFERS; i++) offer_receive(b, i, size);
    assert_true(driver_wait(&b->d, 0, &elem));
    uint8_t answer[256];
    uint16_t buffers;
    memcpy(&buffers, ram(b, BUFFER + 0x1000 + 10), 2);
    assert_int_equal(buffers, mergeable ? 2 : 1);
    memcpy(answer, ram(b, BUFFER + 0x1000), size);
    if (mergeable) {
      assert_int_equal(elem.len, 40);
      memcpy(answer + 40, ram(b, BUFFER + 0x1000 + RX_SIZE), 40);
      assert_true(driver_wait(&b->d, 0, &elem));
    }
    assert_int_equal(answer[12 + 20] << 8 | answer[12 + 21], 2);  /* an ARP reply */
    assert_memory_equal(answer + 12 + 28, "\x0a\x00\x02\x02", 4); /* from 10.0.2.2 */
  }
}

/* Frames that are no frames, and a flood without receive buffers. */
static void test_net_abuse(void **state) {
  struct bench *b = *state;
  const struct virtio_net_options options = {.spec = "user,ipv6=on"};
  struct vring_used_elem elem;
  if (virtio_net_create(b->vmm, b->host, &options, b->err)) fail_msg("%s", b->err);
  driver_open(&b->d, b->vmm, VIRTIO_ID_NET, true);
  assert_true(driver_start(&b->d, COMMON));
  unsigned len = put_arp(ram(b, BUFFER));
  for (unsigned i = 0; i < 2000; i++) {
    driver_offer(&b->d, 1, 0, (struct vring_desc[]){{BUFFER, len, 0, 0}}, 1);
    assert_true(driver_wait(&b->d, 1, &elem));
  }
  driver_offer(&b->d, 1, 0, (struct vring_desc[]){{BUFFER, 13, 0, 0}}, 1); /* shorter than Ethernet */
  assert_true(driver_wait(&b->d, 1, &elem));
  driver_offer(&b->d, 1, 0, (struct vring_desc[]){{BUFFER, 100000, 0, 0}}, 1); /* longer than anything */
  assert_true(driver_wait(&b->d, 1, &elem));
  driver_offer(&b->d, 1, 0, (struct vring_desc[]){{BUFFER, 11, 0, 0}}, 1); /* no header */
  assert_true(fake_msi_wait(b->vmm, DRIVER_VECTOR_DATA, 1));
  assert_true(driver_status(&b->d) & VIRTIO_CONFIG_S_NEEDS_RESET);
  assert_true(driver_start(&b->d, COMMON));
  offer_receive(b, 0, 11); /* too small for the header */
  driver_offer(&b->d, 1, 0, (struct vring_desc[]){{BUFFER, len, 0, 0}}, 1);
  assert_true(fake_msi_wait(b->vmm, DRIVER_VECTOR_DATA, 2));
}

static uint16_t free_port(void) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  socklen_t len = sizeof at;
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  assert_int_equal(bind(fd, (struct sockaddr *)&at, len), 0);
  assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &len), 0);
  close(fd);
  return ntohs(at.sin_port);
}

/* A connection to a forwarded port wakes the device's thread: slirp asks the guest for its hardware address. */
static void test_net_forward(void **state) {
  struct bench *b = *state;
  char spec[64];
  struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  uint16_t port = free_port();
  snprintf(spec, sizeof spec, "user,hostfwd=tcp::%u-:22", port);
  const struct virtio_net_options options = {.spec = spec};
  struct vring_used_elem elem;
  if (virtio_net_create(b->vmm, b->host, &options, b->err)) fail_msg("%s", b->err);
  assert_int_equal(virtio_net_create(b->vmm, b->host, &options, b->err), -EADDRINUSE);
  driver_open(&b->d, b->vmm, VIRTIO_ID_NET, true);
  assert_true(driver_start(&b->d, EVENTS));
  for (unsigned i = 0; i < RX_BUFFERS; i++) offer_receive(b, i, RX_SIZE);
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  to.sin_port = htons(port);
  assert_int_equal(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
  assert_true(driver_wait(&b->d, 0, &elem));
  assert_memory_equal(ram(b, BUFFER + 0x1000) + 12 + 12, "\x08\x06", 2);         /* ARP */
  assert_memory_equal(ram(b, BUFFER + 0x1000) + 12 + 38, "\x0a\x00\x02\x0f", 4); /* for 10.0.2.15 */
  assert_true(fake_msi_wait(b->vmm, DRIVER_VECTOR_DATA + 1, 1));
  close(fd);
}

/* Brings the interface up; its index, or -1. */
static int interface_up(const char *name) {
  struct ifreq ifr = {.ifr_flags = IFF_UP};
  int fd = socket(AF_INET, SOCK_DGRAM, 0);
  strcpy(ifr.ifr_name, name);
  int r = ioctl(fd, SIOCSIFFLAGS, &ifr);
  if (r == 0) r = ioctl(fd, SIOCGIFINDEX, &ifr);
  close(fd);
  return r < 0 ? -1 : ifr.ifr_ifindex;
}

/* Frames through a tap interface in both directions, seen by a packet socket of the host.  Needs CAP_NET_ADMIN, else skipped. */
static void test_net_tap(void **state) {
  struct bench *b = *state;
  const struct virtio_net_options options = {.spec = "tap=uvtest0"};
  struct vring_used_elem elem;
  uint8_t frame[2048];
  int host = socket(AF_PACKET, SOCK_RAW | SOCK_CLOEXEC, htons(0x88b5)); /* an EtherType for experiments */
  if (host < 0) skip();
  if (virtio_net_create(b->vmm, b->host, &options, b->err)) {
    close(host);
    skip();
  }
  struct sockaddr_ll to = {.sll_family = AF_PACKET, .sll_protocol = htons(0x88b5), .sll_ifindex = interface_up("uvtest0")};
  assert_int_equal(bind(host, (struct sockaddr *)&to, sizeof to), 0);
  driver_open(&b->d, b->vmm, VIRTIO_ID_NET, true);
  assert_true(driver_start(&b->d, EVENTS | (driver_features(&b->d) & 1ull << VIRTIO_NET_F_GUEST_CSUM)));

  memset(ram(b, BUFFER), 0, 12);
  memset(ram(b, BUFFER + 12), 0xff, 12);
  memcpy(ram(b, BUFFER + 24), "\x88\xb5 from the guest", 17);
  driver_offer(&b->d, 1, 0, (struct vring_desc[]){{BUFFER, 12 + 60, 0, 0}}, 1);
  assert_true(driver_wait(&b->d, 1, &elem));
  struct timeval patience = {.tv_sec = 5};
  setsockopt(host, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
  assert_int_equal(recv(host, frame, sizeof frame, 0), 60);
  assert_memory_equal(frame + 14, " from the guest", 15);

  memcpy(frame + 14, " from the host!", 15);
  for (unsigned i = 0; i < RX_BUFFERS; i++)
    driver_offer(&b->d, 0, i, (struct vring_desc[]){{BUFFER + 0x1000 + 2048 * i, 2048, VRING_DESC_F_WRITE, 0}}, 1);
  assert_int_equal(send(host, frame, 60, 0), 60);
  bool found = false; /* the host's own chatter (IPv6) may come first */
  for (unsigned i = 0; i < RX_BUFFERS && !found && driver_wait(&b->d, 0, &elem); i++)
    found = elem.len == 12 + 60 && !memcmp(ram(b, BUFFER + 0x1000 + 2048 * elem.id) + 12 + 14, " from the host!", 15);
  assert_true(found);
  close(host);
}

static void test_net_options(void **state) {
  static const struct {
    const char *spec;
    bool good;
  } rows[] = {
      {"user", true},
      {"user,hostfwd=tcp::8022-:22", true},
      {"user,hostfwd=udp:127.0.0.1:53-10.0.2.15:5353,hostfwd=tcp:0.0.0.0:80-:80,ipv6=on,restrict=off", true},
      {"tap=tap0", true},
      {"", false},
      {"usernet", false},
      {"user=1", false},
      {"user,", false},
      {"user,x=1", false},
      {"user,hostfwd", false},
      {"user,hostfwd=tcp::0-:22", false},
      {"user,hostfwd=tcp::70000-:22", false},
      {"user,hostfwd=tcp::22", false},
      {"user,hostfwd=sctp::22-:22", false},
      {"user,hostfwd=tcp:1.2.3:22-:22", false},
      {"user,hostfwd=tcp::22-:", false},
      {"user,ipv6=maybe", false},
      {"tap=", false},
      {"tap", false},
      {"tap=name-that-is-too-long", false},
  };
  struct bench *b = *state;
  for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++) {
    const struct virtio_net_options options = {.spec = rows[i].spec};
    int r = virtio_net_check(&options, b->err);
    if ((r == 0) != rows[i].good) fail_msg("'%s' gave %d", rows[i].spec, r);
  }
  struct slirp_options parsed;
  assert_int_equal(slirp_options_parse(",hostfwd=tcp::8022-:22", &parsed, b->err), 0);
  assert_int_equal(parsed.forward[0].host_addr.s_addr, htonl(INADDR_LOOPBACK));
  assert_int_equal(parsed.forward[0].host_port, 8022);
  assert_int_equal(parsed.forward[0].guest_port, 22);
}

int main(void) {
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
  const struct CMUnitTest tests[] = {
      TEST(test_features),    TEST(test_order),         TEST(test_registers),   TEST(test_config_window),   TEST(test_disk),
      TEST(test_disk_tail),   TEST(test_disk_readonly), TEST(test_disk_ranges), TEST(test_disk_errors),     TEST(test_disk_intx),
      TEST(test_disk_memory), TEST(test_needs_reset),   TEST(test_bad_queue),   TEST(test_reset_in_flight), TEST(test_rng),
      TEST(test_console),     TEST(test_net_arp),       TEST(test_net_abuse),   TEST(test_net_forward),     TEST(test_net_tap),
      TEST(test_net_options),
  };
  return cmocka_run_group_tests_name("virtio", tests, NULL, NULL);
}
