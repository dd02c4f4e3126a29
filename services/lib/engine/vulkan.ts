/**
 * The devices that Vulkan lists, by the system's Vulkan loader. WebGPU takes one of them and does not say which; a
 * machine whose GPU lacks its driver may have nothing but a software device there, which is slower than the CPU's own
 * kernels.
 */
import koffi from 'koffi';
import { loadFault, runtime } from './ort-api.ts';

export interface VulkanDevice {
  /** As its driver names it. */
  readonly name: string;
  /** Computed by the CPU. */
  readonly software: boolean;
}

const LOADER = 'libvulkan.so.1';
/** VkInstanceCreateInfo: 64 bytes, of which only the type of the structure (1) is not zero. */
const CREATE_INFO = new Uint8Array(64).fill(1, 0, 1);
/** VkPhysicalDeviceProperties: its length, and where the type and the name (zero-terminated) lie, in bytes. */
const PROPERTIES = { length: 824, type: 16, name: 20, nameEnd: 276 };
/** VK_PHYSICAL_DEVICE_TYPE_CPU */
const CPU = 4;

/** The devices, in the order of the loader; none where there is no loader or no driver, and on other systems. */
export function vulkanDevices(): VulkanDevice[] {
  if (process.platform !== 'linux') return [];
  runtime(); // first, since it configures koffi, which is possible only before any library is loaded
  if (loadFault(LOADER) !== undefined) return [];
  const loader = koffi.load(LOADER);
  const p = 'void *';
  const createInstance = loader.func('vkCreateInstance', 'int', [p, p, p]);
  const destroyInstance = loader.func('vkDestroyInstance', 'void', [p, p]);
  const enumerate = loader.func('vkEnumeratePhysicalDevices', 'int', [p, p, p]);
  const propertiesOf = loader.func('vkGetPhysicalDeviceProperties', 'void', [p, p]);
  const made = new BigUint64Array(1);
  if (createInstance(CREATE_INFO, null, made) !== 0) return [];
  const instance = made[0];
  try {
    const count = new Uint32Array(1);
    if (enumerate(instance, count, null) !== 0 || count[0] === 0) return [];
    const devices = new BigUint64Array(count[0]!);
    if (enumerate(instance, count, devices) < 0) return [];
    return [...devices.subarray(0, count[0])].map((device) => {
      const properties = Buffer.alloc(PROPERTIES.length);
      propertiesOf(device, properties);
      const [name] = properties.toString('utf8', PROPERTIES.name, PROPERTIES.nameEnd).split('\0', 1);
      return { name: name!, software: properties.readUInt32LE(PROPERTIES.type) === CPU };
    });
  } finally {
    destroyInstance(instance, null);
  }
}

/** The devices in words, for logs and errors. */
export const inWords = (devices: readonly VulkanDevice[]) =>
  devices.map(({ name, software }) => (software ? `${name} (software)` : name)).join(', ');
