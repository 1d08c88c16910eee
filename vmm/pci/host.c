/* The host bridge: configuration mechanism #1 at ports 0xcf8-0xcff, ECAM, and the slots of bus 0.
 *
 * PCI Local Bus 3.0, section 3.2.2.3.2; PCI Express 3.0, section 7.2.2 (ECAM).
 */
#include "vmm/pci/pci_priv.h"

#include <errno.h>
#include <stdlib.h>

#include <linux/pci_regs.h>

#include "vmm/vmm.h"

enum {
  CONFIG_ENABLE_SHIFT = 31,
  PCI_VENDOR_REDHAT = 0x1b36,
  PCI_CLASS_HOST_BRIDGE = 0x060000,
  PCI_DEVICE_HOST_BRIDGE = 0x0008, /* the generic bridge that guests know and have no quirks for */
};

/* ---- ports ---- */

static void address_read(void *opaque, uint64_t offset, void *data, unsigned len) {
  struct pci_host *host = opaque;
  memset(data, 0xff, len);
  if (offset == 0 && len == 4) memcpy(data, &host->address, 4);
}

/* Only a dword write reaches CONFIG_ADDRESS (3.2.2.3.2); bytes to 0xcf9 are the reset register's, elsewhere. */
static void address_write(void *opaque, uint64_t offset, const void *data, unsigned len) {
  struct pci_host *host = opaque;
  if (offset || len != 4) return;
  memcpy(&host->address, data, 4);
  host->address &= 0x80fffffcu;
}

/* The address register names bus, function and dword; the port's low bits the byte.  -1: no access to bus 0. */
static int data_target(const struct pci_host *host, uint64_t offset, unsigned *where) {
  if (!(host->address >> CONFIG_ENABLE_SHIFT) || (host->address >> 16 & 0xff)) return -1;
  *where = (host->address & 0xfc) + offset;
  return host->address >> 8 & 0xff;
}

static void data_read(void *opaque, uint64_t offset, void *data, unsigned len) {
  unsigned where;
  int devfn = data_target(opaque, offset, &where);
  uint32_t value = devfn < 0 ? UINT32_MAX : pci_config_read(opaque, devfn, where, len);
  memcpy(data, &value, len);
}

static void data_write(void *opaque, uint64_t offset, const void *data, unsigned len) {
  unsigned where;
  uint32_t value = 0;
  int devfn = data_target(opaque, offset, &where);
  memcpy(&value, data, len);
  if (devfn >= 0) pci_config_write(opaque, devfn, where, value, len);
}

static const struct vmm_range_ops address_ops = {.read = address_read, .write = address_write};
static const struct vmm_range_ops data_ops = {.read = data_read, .write = data_write};

/* ---- ECAM ---- */

/* A qword access is two dword accesses; others pass as they are. */
static void ecam_read(void *opaque, uint64_t offset, void *data, unsigned len) {
  for (unsigned done = 0; done < len; done += 4) {
    unsigned piece = len - done > 4 ? 4 : len - done;
    uint32_t value = pci_config_read(opaque, (offset + done) >> 12, (offset + done) & 0xfff, piece);
    memcpy((uint8_t *)data + done, &value, piece);
  }
}

static void ecam_write(void *opaque, uint64_t offset, const void *data, unsigned len) {
  for (unsigned done = 0; done < len; done += 4) {
    unsigned piece = len - done > 4 ? 4 : len - done;
    uint32_t value = 0;
    memcpy(&value, (const uint8_t *)data + done, piece);
    pci_config_write(opaque, (offset + done) >> 12, (offset + done) & 0xfff, value, piece);
  }
}

static const struct vmm_range_ops ecam_ops = {.read = ecam_read, .write = ecam_write};

int pci_host_add_ecam(struct pci_host *host, uint64_t base) {
  return vmm_mmio_add(host->vmm, base, PCI_ECAM_SIZE, &ecam_ops, host);
}

/* ---- slots ---- */

bool pci_slot_present(const struct pci_host *host, unsigned slot) {
  return slot < PCI_SLOTS && host->slot[slot];
}

struct vmm *pci_dev_vmm(const struct pci_dev *dev) {
  return dev->host->vmm;
}

static int free_slot(const struct pci_host *host) {
  for (unsigned i = 0; i < PCI_SLOTS; i++)
    if (!host->slot[i]) return i;
  return -ENOSPC;
}

int pci_dev_add(struct pci_host *host, struct pci_dev *dev) {
  int slot = free_slot(host);
  if (slot < 0) return slot;
  dev->host = host;
  dev->slot = slot;
  int r = pci_bars_assign(host, dev);
  if (r < 0) return r;
  if (dev->config[PCI_INTERRUPT_PIN]) dev->config[PCI_INTERRUPT_LINE] = pci_intx_gsi(slot, dev->config[PCI_INTERRUPT_PIN] - 1);
  memcpy(dev->initial, dev->config, sizeof dev->config);
  host->slot[slot] = dev;
  pci_bars_update(host);
  return 0;
}

/* ---- life ---- */

static void bridge_destroy(struct pci_dev *dev) {
  pci_dev_fini(dev);
}
static const struct pci_dev_ops bridge_ops = {.destroy = bridge_destroy};

static void host_reset(void *opaque) {
  struct pci_host *host = opaque;
  host->address = 0;
  for (unsigned i = 0; i < PCI_SLOTS; i++) {
    struct pci_dev *dev = host->slot[i];
    if (!dev) continue;
    if (dev->ops->reset) dev->ops->reset(dev);
    pci_dev_config_reset(dev);
  }
}

static int host_claim(struct pci_host *host) {
  int r = vmm_pio_add(host->vmm, PCI_PIO_ADDRESS, 4, &address_ops, host);
  if (r < 0) return r;
  r = vmm_pio_add(host->vmm, PCI_PIO_DATA, 4, &data_ops, host);
  if (r < 0) goto no_data;
  r = vmm_on_reset(host->vmm, host_reset, host);
  if (r < 0) goto no_reset;
  return 0;

no_reset:
  vmm_pio_del(host->vmm, PCI_PIO_DATA);
no_data:
  vmm_pio_del(host->vmm, PCI_PIO_ADDRESS);
  return r;
}

struct pci_host *pci_host_create(struct vmm *vmm) {
  static const struct pci_id bridge_id = {
      .vendor = PCI_VENDOR_REDHAT, .device = PCI_DEVICE_HOST_BRIDGE, .class_code = PCI_CLASS_HOST_BRIDGE};
  struct pci_host *host = calloc(1, sizeof *host);
  if (!host) return NULL;
  host->vmm = vmm;
  pthread_mutex_init(&host->intx_lock, NULL);
  pci_dev_init(&host->bridge, &bridge_ops, &bridge_id);
  pci_dev_add(host, &host->bridge); /* the first of 32 slots, and no BAR: cannot fail */
  int r = host_claim(host);
  if (r < 0) {
    free(host);
    errno = -r;
    return NULL;
  }
  return host;
}

void pci_host_destroy(struct pci_host *host) {
  if (!host) return;
  for (unsigned i = 0; i < PCI_SLOTS; i++) {
    struct pci_dev *dev = host->slot[i];
    if (!dev) continue;
    vmm_lock(host->vmm);
    pci_bars_unmap(dev);
    vmm_unlock(host->vmm);
    host->slot[i] = NULL;
    dev->ops->destroy(dev);
  }
  vmm_lock(host->vmm);
  vmm_pio_del(host->vmm, PCI_PIO_ADDRESS);
  vmm_pio_del(host->vmm, PCI_PIO_DATA);
  vmm_unlock(host->vmm);
  free(host);
}
