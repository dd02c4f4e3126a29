/**
 * Prints the environment of the tests' software GPU for a shell, and provisions it before:
 * `eval "$(npm run -s vulkan)"`, then any command of this project. `wrong` and `none` as argument give a device
 * that computes wrong, and none at all.
 */
import { type VulkanDevice, vulkanEnvironment } from './vulkan.ts';

const environment = await vulkanEnvironment((process.argv[2] ?? 'right') as VulkanDevice);
for (const [name, value] of Object.entries(environment)) console.log(`export ${name}='${value}'`);
