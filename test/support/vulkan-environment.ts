/**
 * Prints the environment of the tests' software GPU for a shell, and provisions it before:
 * `eval "$(npm run -s vulkan)"`, then any command of this project. `wrong` and `none` as argument give a device
 * that computes wrong, and none at all.
 */
import { VULKAN_DEVICES, vulkanEnvironment } from './vulkan.ts';

const [wanted = 'right'] = process.argv.slice(2);
const device = VULKAN_DEVICES.find((name) => name === wanted);
if (device === undefined) {
  console.error(`npm run vulkan: there is no device ${wanted}: use ${VULKAN_DEVICES.join(', ')}`);
  process.exit(1);
}
const environment = await vulkanEnvironment(device);
for (const [name, value] of Object.entries(environment)) console.log(`export ${name}='${value}'`);
