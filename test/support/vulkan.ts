/**
 * A software GPU for tests: Mesa's lavapipe behind a Vulkan layer of ours that can report another vendor. Everything
 * is unpacked and built in `.cache/vulkan`; the system is not changed. Compiled shaders are kept there as well, because
 * compiling them costs more than running them. Where it cannot be provisioned, tests fail; none is skipped.
 */
import { execFile } from 'node:child_process';
import { createHash } from 'node:crypto';
import { existsSync } from 'node:fs';
import { mkdir, readdir, readFile, rename, writeFile } from 'node:fs/promises';
import { join, relative } from 'node:path';
import { promisify } from 'node:util';
import koffi from 'koffi';
import { runtime } from '../../services/lib/engine/ort-api.ts';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { libraryFolders, unpackPackages } from './debian-packages.ts';

const run = promisify(execFile);
const STEP_TIMEOUT_MS = 120_000;
const CACHE = join(PACKAGE_ROOT, '.cache');
/**
 * Limit of a test that runs a decoder on the software GPU, in ms. With no shader compiled yet, one decoder costs up to
 * a minute of CPU; on a machine whose cores are shared that is several minutes.
 */
export const COMPILING_MS = 600_000;
/**
 * The model with which tests run the software GPU: a random one of 3 layers whose heads have 16 elements. With no
 * shader compiled yet, its fp32 kernels take 27 s of CPU, and those of the model that ships, with heads of 64, take 54.
 * Kernels that two tests have in common are compiled once.
 */
export const DEVICE_MODEL = join(PACKAGE_ROOT, 'test', 'goldens', 'qwen2-tied');
/**
 * Lavapipe computes with vectors of 4 lanes instead of 8, for which LLVM has much less to compile: the fp32 kernels of
 * a prompt and a step take 6 s of CPU instead of 16.
 */
const FAST_COMPILING = { LP_NATIVE_VECTOR_WIDTH: '128' };
/** The unpacked packages. */
const ROOT = join(CACHE, 'vulkan');
const SOURCE = join(PACKAGE_ROOT, 'test', 'support', 'vulkan-layer.c');
/** ONNX Runtime's WebGPU does not start on lavapipe before Mesa 25: it lacks features that Dawn demands. */
const MESA_MAJOR = 25;
const LAYER = 'VK_LAYER_test_vendor';
const NVIDIA = '0x10de';

/**
 * `right`: the device reports NVIDIA as its vendor, and ONNX Runtime computes right on it. `wrong`: it reports its own
 * vendor, and prompts of 32 tokens and more get wrong logits by a fault of ONNX Runtime 1.30. `none`: no driver.
 */
export const VULKAN_DEVICES = ['right', 'wrong', 'none'] as const;
export type VulkanDevice = (typeof VULKAN_DEVICES)[number];

interface Installed {
  /** Folders of the Vulkan loader, of the driver and of what they need. */
  readonly libraries: readonly string[];
  /** Manifest of the driver: a JSON file that the Vulkan loader reads. */
  readonly driver: string;
  /** Folder of our layer and its manifest. */
  readonly layers: string;
}

let installed: Promise<Installed> | undefined;

/**
 * The environment of a process that finds the software GPU and no other one.
 * @throws Error that says what is missing, if it cannot be provisioned.
 */
export async function vulkanEnvironment(device: VulkanDevice = 'right'): Promise<Record<string, string>> {
  installed ??= provisioned();
  const { libraries, driver, layers } = await installed;
  const shaders = process.env['MESA_SHADER_CACHE_DIR'] || join(CACHE, 'vulkan-shaders');
  await mkdir(shaders, { recursive: true });
  const found = device === 'none' ? '/dev/null' : driver;
  return {
    LD_LIBRARY_PATH: libraries.join(':'),
    VK_DRIVER_FILES: found,
    VK_ICD_FILENAMES: found, // the same variable of older loaders
    VK_LAYER_PATH: layers,
    VK_INSTANCE_LAYERS: LAYER,
    TEST_VULKAN_VENDOR: device === 'wrong' ? '' : NVIDIA,
    MESA_SHADER_CACHE_DIR: shaders,
    ...FAST_COMPILING,
    XDG_RUNTIME_DIR: process.env['XDG_RUNTIME_DIR'] || CACHE, // Mesa warns where it is not set
  };
}

/** Libraries of this process. Koffi unloads one that nothing refers to, and the next call into it would crash. */
const held: unknown[] = [];

/**
 * Gives the test's own process the software GPU. It must be called before the first WebGPU session of the process, and
 * cannot be undone: the runtime keeps its device. The dynamic linker has read LD_LIBRARY_PATH long before, so the
 * libraries are loaded here by path: whoever asks for their names later gets these.
 * @throws Error that says what is missing, if it cannot be provisioned.
 */
export async function useVulkan(device: VulkanDevice = 'right'): Promise<void> {
  const { LD_LIBRARY_PATH, ...environment } = await vulkanEnvironment(device);
  Object.assign(process.env, environment);
  const { libraries } = await installed!;
  runtime(); // koffi takes the runtime's configuration only as long as no library is loaded
  loadLibrary('libvulkan.so.1', libraries);
  loadLibrary('libvulkan_lvp.so', libraries);
}

/** Loads a library from one of the folders; before it those that it needs and that the system does not have. */
function loadLibrary(name: string, folders: readonly string[]): void {
  const path = folders.map((folder) => join(folder, name)).find((candidate) => existsSync(candidate));
  if (path === undefined) throw new Error(`${name} is not in .cache/vulkan: remove that folder and run again`);
  for (let wanted: string | undefined; ; ) {
    try {
      held.push(koffi.load(path, { global: true }));
      return;
    } catch (error) {
      const missing = /(\S+): cannot open shared object file/.exec(reason(error))?.[1];
      if (missing === undefined || missing === wanted) throw error;
      wanted = missing;
      loadLibrary(missing, folders);
    }
  }
}

/** @throws Error that says what to install. */
async function provisioned(): Promise<Installed> {
  try {
    if (process.platform !== 'linux') throw new Error(`lavapipe needs Linux, and this is ${process.platform}`);
    if (!existsSync(ROOT)) {
      await unpackPackages(ROOT, {
        always: ['mesa-vulkan-drivers', 'libvulkan1', 'libvulkan-dev'],
        missing: (await works('gcc')) ? [] : ['gcc'],
        atLeast: { package: 'mesa-vulkan-drivers', major: MESA_MAJOR },
      });
    }
    const libraries = await libraryFolders(ROOT);
    return { libraries, driver: await driverManifest(), layers: await layerFolder(libraries) };
  } catch (error) {
    throw new Error(
      `These tests need a software GPU, and it could not be put into ${ROOT}: ${reason(error)}. It is made of Debian's mesa-vulkan-drivers (${MESA_MAJOR} or later; bookworm has it in its backports), libvulkan1, libvulkan-dev and gcc. They are downloaded with apt-get from the mirror in /etc/apt and unpacked with dpkg-deb; root is not needed. Make the mirror reachable, or copy .cache/ from a machine of the same release where these tests run.`,
      { cause: error },
    );
  }
}

/** Writes the manifest of lavapipe. Its path of the library is relative, so that the cache can be moved. */
async function driverManifest(): Promise<string> {
  const folder = join(ROOT, 'usr', 'share', 'vulkan', 'icd.d');
  const name = (await readdir(folder)).find((file) => /^lvp_icd\b.*\.json$/.test(file));
  if (name === undefined) throw new Error(`${folder} has no lvp_icd.json: mesa-vulkan-drivers lacks lavapipe here`);
  const manifest = JSON.parse(await readFile(join(folder, name), 'utf8'));
  const library = (await libraryFolders(ROOT))
    .map((place) => join(place, 'libvulkan_lvp.so'))
    .find((path) => existsSync(path));
  manifest.ICD.library_path = `./${relative(ROOT, library ?? '')}`;
  return writeOnce(join(ROOT, 'lavapipe.json'), `${JSON.stringify(manifest)}\n`);
}

/** Builds our layer, once for each version of its source. */
async function layerFolder(libraries: readonly string[]): Promise<string> {
  const source = await readFile(SOURCE);
  const folder = join(CACHE, `vulkan-layer-${createHash('sha256').update(source).digest('hex').slice(0, 12)}`);
  if (existsSync(join(folder, 'layer.json'))) return folder;
  await mkdir(folder, { recursive: true });
  const object = join(folder, `build-${process.pid}.so`);
  // A gcc that was unpacked runs in its folder, with the libraries there. One that is installed comes first.
  const path = `${process.env['PATH']}:${join(ROOT, 'usr', 'bin')}`;
  const env = { ...process.env, PATH: path, ...((await works('gcc')) ? {} : { LD_LIBRARY_PATH: libraries.join(':') }) };
  const flags = ['-shared', '-fPIC', '-O1', '-Wall', '-Werror', '-ffreestanding', '-nostdlib'];
  await run('gcc', [...flags, '-I', join(ROOT, 'usr', 'include'), '-o', object, SOURCE], {
    env,
    timeout: STEP_TIMEOUT_MS,
  });
  await rename(object, join(folder, 'layer.so'));
  const layer = {
    name: LAYER,
    type: 'GLOBAL',
    library_path: './layer.so',
    api_version: '1.3.0',
    implementation_version: '1',
    description: 'reports another vendor id',
  };
  await writeOnce(join(folder, 'layer.json'), `${JSON.stringify({ file_format_version: '1.1.0', layer })}\n`);
  return folder;
}

/** Several processes may write the same file at once: none of them sees half of it. */
async function writeOnce(path: string, text: string): Promise<string> {
  if (existsSync(path)) return path;
  const own = `${path}.${process.pid}`;
  await writeFile(own, text);
  await rename(own, path);
  return path;
}

const works = (command: string) =>
  run(command, ['--version'], { timeout: STEP_TIMEOUT_MS }).then(
    () => true,
    () => false,
  );

const reason = (error: unknown) => {
  const { stderr, message } = error as { stderr?: string; message: string };
  return (stderr?.trim().split('\n').at(-1) || message).replace(/\.$/, '');
};
