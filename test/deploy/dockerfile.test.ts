/** deploy/Dockerfile and .dockerignore against the repository: the image has what runs, and nothing else. */
import { execFileSync } from 'node:child_process';
import { existsSync } from 'node:fs';
import { mkdir, mkdtemp, readdir, readFile, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, expect, test } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';

interface Stage {
  readonly from: string;
  /** Empty for the last stage, which has none. */
  readonly name: string;
  readonly lines: readonly string[];
}

const read = (path: string) => readFile(join(PACKAGE_ROOT, path), 'utf8');

/** The stages of the Dockerfile; lines that a backslash continues are one. */
async function stages(): Promise<Stage[]> {
  const text = (await read('deploy/Dockerfile')).replace(/^#.*\n/gm, '').replace(/\\\n\s*/g, ' ');
  const [, ...parts] = text.split(/^FROM /m);
  return parts.map((part) => {
    const [first = '', ...lines] = part.split('\n').filter((line) => line.trim() !== '');
    const [from = '', name = ''] = first.split(' AS ');
    return { from, name, lines };
  });
}

async function stage(name: string): Promise<Stage> {
  const found = (await stages()).find((stage) => stage.name === name);
  if (found === undefined) throw new Error(`deploy/Dockerfile has no stage ${name}`);
  return found;
}

/** The values that a stage sets in the environment. */
const environmentOf = ({ lines }: Stage) =>
  Object.fromEntries(
    lines
      .filter((line) => line.startsWith('ENV '))
      .flatMap((line) => line.slice('ENV '.length).split(/\s+/))
      .map((pair) => pair.split('=')),
  ) as Record<string, string>;

/** The sources that a stage copies from the repository. */
const copied = ({ lines }: Stage) =>
  lines
    .filter((line) => line.startsWith('COPY ') && !line.includes('--from='))
    .flatMap((line) => line.split(/\s+/).slice(1, -1));

/** Whether .dockerignore leaves a path out: the last rule that matches decides. */
async function ignored(path: string): Promise<boolean> {
  const rules = (await read('.dockerignore')).split('\n').filter((rule) => rule !== '' && !rule.startsWith('#'));
  let out = false;
  for (const rule of rules) {
    const pattern = rule.replace(/^!/, '').replaceAll('.', '\\.').replace('**/', '(?:.*/)?').replace(/\*$/, '[^/]*');
    if (new RegExp(`^${pattern.replace('*\\.', '[^/]*\\.')}(?:/.*)?$`).test(path)) out = !rule.startsWith('!');
  }
  return out;
}

describe('deploy/Dockerfile', () => {
  test('copies only what exists, and what .dockerignore lets through', async () => {
    for (const source of (await stages()).flatMap(copied)) {
      expect(existsSync(join(PACKAGE_ROOT, source)), source).toBe(true);
      expect(await ignored(source), source).toBe(false);
    }
  });

  test('builds and runs on one version of Node under long-term support that package.json permits', async () => {
    const [build, image] = [await stage('build'), await stage('cpu')];
    const version = /^ARG NODE=(\d+)$/m.exec(await read('deploy/Dockerfile'))?.[1];
    expect(['22', '24']).toContain(version);
    // biome-ignore lint/suspicious/noTemplateCurlyInString: the variable is the Dockerfile's
    const base = 'node:${NODE}-${DEBIAN}-slim';
    expect([build.from, image.from]).toEqual([base, base]);
    expect(await read('deploy/Dockerfile')).toMatch(/^ARG DEBIAN=bookworm$/m);
    const { engines } = JSON.parse(await read('package.json')) as { engines: { node: string } };
    expect(Number(version)).toBeGreaterThanOrEqual(Number(/\d+/.exec(engines.node)?.[0]));
  });

  test('leaves tests, development dependencies and the libraries of other platforms out of the image', async () => {
    const build = await stage('build');
    const sources = (await stages()).flatMap(copied);
    expect(sources.filter((source) => source.startsWith('test'))).toEqual([]);
    expect(await ignored('test/docs.test.ts')).toBe(true);
    expect(await ignored('dist/services/cli.js')).toBe(true);
    expect(await ignored('node_modules/fastify/package.json')).toBe(true);
    const run = build.lines.filter((line) => line.startsWith('RUN ')).join('\n');
    expect(run).toMatch(/npm run build && npm prune --omit=dev && npm run prune:platform/);
  });

  test('brings what package.json says that the system runs on', async () => {
    const image = await stage('cpu');
    const { files } = JSON.parse(await read('package.json')) as { files: string[] };
    const folders = [...copied(image), 'dist'];
    for (const file of files.filter((file) => !file.startsWith('!'))) {
      expect(
        folders.some((folder) => file === folder || file.startsWith(`${folder}/`)),
        file,
      ).toBe(true);
    }
  });

  test('runs without root and without writing to HOME', async () => {
    const image = await stage('cpu');
    expect(image.lines).toContain('USER node');
    expect(environmentOf(image)['ORT_DISABLE_TELEMETRY']).toBe('1');
  });

  test('is built for the CPU unless --target says otherwise', async () => {
    expect((await stages()).at(-1)).toEqual({ from: 'cpu', name: '', lines: [] });
  });

  test('every image ends as a user that is not root, with the same command and folder for data', async () => {
    for (const name of ['cpu', 'webgpu', 'cuda12']) {
      const image = await stage(name);
      const inherited = image.from === 'cpu' ? await stage('cpu') : image;
      expect(
        image.lines.findLast((line) => line.startsWith('USER ')),
        name,
      ).toMatch(/^USER (?:node|1000:1000)$/);
      expect(inherited.lines, name).toEqual(expect.arrayContaining(['VOLUME /data', 'ENTRYPOINT ["llavacode"]']));
      expect(environmentOf(inherited), name).toMatchObject({
        NODE_ENV: 'production',
        ORT_DISABLE_TELEMETRY: '1',
        NODE_USE_ENV_PROXY: '0',
        LLAVACODE_DATA: '/data',
      });
    }
  });

  test('webgpu has the Vulkan loader and what the driver of a host loads, and asks for that driver', async () => {
    const webgpu = await stage('webgpu');
    expect(webgpu.from).toBe('cpu');
    expect(webgpu.lines.find((line) => line.includes('apt-get install'))).toMatch(
      /--no-install-recommends libvulkan1 libx11-6 libxext6 \$VULKAN_DRIVERS/,
    );
    expect(environmentOf(webgpu)['NVIDIA_DRIVER_CAPABILITIES']).toBe('compute,utility,graphics');
  });

  test('cuda12 gets the libraries by the script of the package, on a base that an argument names', async () => {
    const [build, cuda] = [await stage('build-cuda12'), await stage('cuda12')];
    expect(build.from).toBe('build');
    const script = /RUN node (node_modules\S+) --onnxruntime-node-install=cuda12/.exec(build.lines.join('\n'))?.[1];
    expect(existsSync(join(PACKAGE_ROOT, `${script}.js`))).toBe(true);
    expect(cuda.from).toBe('$' + '{CUDA}');
    expect(await read('deploy/Dockerfile')).toMatch(/^ARG CUDA=\S*:12\.\d+\.\d+-cudnn-runtime-/m);
    const binaries = 'node_modules/onnxruntime-node/bin';
    expect(cuda.lines).toEqual(
      expect.arrayContaining([
        'COPY --from=cpu /usr/local/bin/node /usr/local/bin/node',
        'COPY --from=cpu /app /app',
        `COPY --from=build-cuda12 /app/${binaries} ${binaries}`,
      ]),
    );
  });
});

describe('npm run prune:platform', () => {
  const script = join(PACKAGE_ROOT, 'scripts', 'prune-platform.mjs');
  const own = `${process.platform}/${process.arch}`;
  let dir: string;
  const binaries = () => join(dir, 'node_modules', 'onnxruntime-node', 'bin', 'napi-v6');
  async function add(platform: string): Promise<void> {
    await mkdir(join(binaries(), platform), { recursive: true });
    await writeFile(join(binaries(), platform, 'library'), 'x');
  }
  const kept = async () =>
    (await readdir(binaries(), { recursive: true })).filter((path) => path.endsWith('library')).sort();

  beforeEach(async () => {
    dir = await mkdtemp(join(tmpdir(), 'llavacode-prune-'));
  });
  afterEach(() => rm(dir, { recursive: true, force: true }));

  test('keeps the libraries of this platform alone', async () => {
    for (const platform of ['plan9/mips', 'plan9/x64', own]) await add(platform);
    execFileSync(process.execPath, [script, dir], { stdio: 'ignore' });
    expect(await kept()).toEqual([`${own}/library`]);
  });

  test('removes nothing where there is nothing for this platform', async () => {
    await add('plan9/mips');
    expect(() => execFileSync(process.execPath, [script, dir], { stdio: 'ignore' })).toThrow();
    expect(await kept()).toEqual(['plan9/mips/library']);
  });
});
