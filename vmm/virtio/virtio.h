/* The virtio devices of the machine: making them, and the calls their backends need.
 *
 * Every xxx_create() puts one function on the PCI bus before vCPUs run and returns 0 or -errno; on failure err holds one
 * sentence for the user.  Strings of the configuration are copied.  pci_host_destroy() ends the devices.
 *
 * Threads: virtio-blk and virtio-net work in a thread of their own per device; virtio-rng and virtio-console on the main loop.
 * Doorbells are eventfds (vmm_doorbell_add), so a guest's kick does not leave KVM_RUN.
 */
#ifndef VMM_VIRTIO_VIRTIO_H
#define VMM_VIRTIO_VIRTIO_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

struct vmm;
struct pci_host;

enum { VIRTIO_ERR_MAX = 256 };

struct virtio_blk_options {
  const char *path; /* raw image or block device */
  bool readonly;
  const char *serial; /* up to 20 bytes, may be NULL */
};
int virtio_blk_create(struct vmm *vmm, struct pci_host *host, const struct virtio_blk_options *options, char err[VIRTIO_ERR_MAX]);
/* Says whether the disk can be opened and locked, without keeping it (--dry-run).  0 or -errno with err. */
int virtio_blk_check(const struct virtio_blk_options *options, char err[VIRTIO_ERR_MAX]);

struct virtio_net_options {
  /* As the user wrote it after --net: "user[,hostfwd=tcp|udp:[HADDR]:HPORT-[GADDR]:GPORT][,ipv6=on|off]
   * [,restrict=on|off]" (HADDR is 127.0.0.1 if left out) or "tap=NAME". */
  const char *spec;
  const uint8_t *mac; /* six bytes, or NULL for 52:54:00:12:34:56 + index of the device */
};
int virtio_net_create(struct vmm *vmm, struct pci_host *host, const struct virtio_net_options *options, char err[VIRTIO_ERR_MAX]);
/* Parses the spec only (--dry-run).  0 or -EINVAL with err. */
int virtio_net_check(const struct virtio_net_options *options, char err[VIRTIO_ERR_MAX]);

int virtio_rng_create(struct vmm *vmm, struct pci_host *host, char err[VIRTIO_ERR_MAX]);

struct console;
struct virtio_console;
struct virtio_console_options {
  struct console *console; /* backend/console.h; the device attaches itself to it */
  uint16_t columns, rows;  /* 0: unknown */
};
/* hvc0.  *out (may be NULL) stays valid until pci_host_destroy(), which comes before console_close(). */
int virtio_console_create(struct vmm *vmm, struct pci_host *host, const struct virtio_console_options *options,
                          struct virtio_console **out, char err[VIRTIO_ERR_MAX]);
/* The terminal has another size now.  vmm->lock is held. */
void virtio_console_resize(struct virtio_console *console, uint16_t columns, uint16_t rows);

#endif
