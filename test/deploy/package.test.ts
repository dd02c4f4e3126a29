/**
 * The package as npm makes and installs it: `npm pack`, `npm install --global` of the tarball, then `llavacode` from
 * that prefix, in a folder that is not the repository. The registry is this machine's (installed-registry.ts in
 * test/support). npm installs no development dependencies, so that code which needs one fails here.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process';
import { once } from 'node:events';
import { access, mkdir, mkdtemp, readdir, readFile, realpath, rm } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { afterAll, beforeAll, describe, expect, onTestFinished, test } from 'vitest';
import { PACKAGE_ROOT } from '../../services/lib/process/package-root.ts';
import { SAMPLE, SAMPLE_BODY } from '../../services/sample.ts';
import { startInstalledRegistry } from '../support/installed-registry.ts';

const run = promisify(execFile);
/** Real processes that load a model take long on a machine that is busy. */
const LIMIT = 600_000;

interface Manifest {
  readonly name: string;
  readonly version: string;
  readonly overrides?: object;
  readonly engines: { readonly node: string };
}

let dir: string;
let manifest: Manifest;
/** The paths in the tarball. */
let packed: string[];
const installed = () => join(dir, 'prefix', 'lib', 'node_modules', manifest.name);
const command = () => join(dir, 'prefix', 'bin', 'llavacode');

beforeAll(async () => {
  dir = await realpath(await mkdtemp(join(tmpdir(), 'llavacode-package-')));
  manifest = JSON.parse(await readFile(join(PACKAGE_ROOT, 'package.json'), 'utf8')) as Manifest;
  const { stdout } = await run(
    'npm',
    ['pack', '--json', '--ignore-scripts', '--pack-destination', dir, '--cache', join(dir, 'npm')],
    { cwd: PACKAGE_ROOT, maxBuffer: 16 << 20 },
  );
  const [{ filename, files }] = JSON.parse(stdout) as [{ filename: string; files: { path: string }[] }];
  packed = files.map(({ path }) => path).sort();
  await mkdir(join(dir, 'home'));
  await install(join(dir, filename));
}, LIMIT);
afterAll(() => rm(dir, { recursive: true, force: true }));

async function install(tarball: string): Promise<void> {
  const registry = await startInstalledRegistry();
  try {
    const where = ['--prefix', join(dir, 'prefix'), '--registry', registry.url, '--cache', join(dir, 'npm')];
    const quiet = ['--no-audit', '--no-fund', '--no-update-notifier', '--loglevel', 'error'];
    await run('npm', ['install', '--global', '--ignore-scripts', tarball, ...where, ...quiet], {
      cwd: dir,
      env: environment(),
    });
  } finally {
    registry.close();
  }
  await access(command());
}

/** A fresh folder to run the command in. */
async function folder(name: string): Promise<string> {
  const path = join(dir, name);
  await mkdir(path);
  return path;
}

const environment = () => ({ ...process.env, HOME: join(dir, 'home'), npm_command: undefined });
const llavacode = (cwd: string, ...words: string[]) => run(command(), words, { cwd, env: environment() });

/** The files of the installed package itself. */
const installedFiles = async () =>
  (await readdir(installed(), { recursive: true })).filter((path) => !path.startsWith('node_modules')).sort();

describe('the tarball', () => {
  test('has what runs: the command, the benches, the protocol, the model that ships and the sample repository', () => {
    expect(packed).toEqual(
      expect.arrayContaining([
        'LICENSE',
        'README.md',
        'bench/data/typing-session.jsonl',
        'dist/bench/commands.js',
        'dist/services/cli.js',
        'examples/shop/shop/checkout.py',
        'models/tiny-coder/model.safetensors',
        'package.json',
        'protos/llavacode/v1/prefill.proto',
      ]),
    );
  });

  test('has no sources, tests, results or files of the build', () => {
    const kinds = [
      /^(?:LICENSE|README\.md|package\.json)$/,
      /^dist\/(?:services|bench|training)\/[\w/.-]+\.js$/,
      /^bench\/data\//,
      /^bench\/training\/pytorch-step\.py$/,
      /^examples\/shop\//,
      /^models\/tiny-coder\//,
      /^protos\/llavacode\/v1\/\w+\.proto$/,
    ];
    expect(packed.filter((path) => !kinds.some((kind) => kind.test(path)))).toEqual([]);
  });
});

test('every package that is installed with it runs on the oldest Node that it says, without overrides, which npm does not heed', async () => {
  expect(manifest.overrides, 'npm heeds overrides only in the folder where it works').toBeUndefined();
  const [, oldest] = />=(\d+)/.exec(manifest.engines.node)!;
  const { packages } = JSON.parse(await readFile(join(PACKAGE_ROOT, 'package-lock.json'), 'utf8')) as {
    packages: Record<string, { dev?: boolean; engines?: { node?: string } }>;
  };
  const tooNew = Object.entries(packages).filter(([, { dev, engines }]) => {
    // Of `18 || 20 || >=22`, each part allows the major version that it begins with.
    const parts = (engines?.node ?? '').split('||');
    const least = parts.flatMap((part) => /\d+/.exec(part)?.map(Number) ?? []);
    return !dev && least.length > 0 && Math.min(...least) > Number(oldest);
  });
  expect(tooNew.map(([path]) => path)).toEqual([]);
});

describe('an installed llavacode, in a folder that is not the repository', () => {
  test('says its version and its commands', { timeout: LIMIT }, async () => {
    const cwd = await folder('version');
    expect((await llavacode(cwd, '--version')).stdout.trim()).toBe(manifest.version);
    expect((await llavacode(cwd, '--help')).stdout).toMatch(/^ {2}up .*\n(?:.*\n)* {2}demo /m);
    expect((await llavacode(cwd, 'bench', '--help')).stdout).toContain('tables');
  });

  test('serves a completion, keeps its data in that folder, and stops', { timeout: LIMIT }, async () => {
    const cwd = await folder('up');
    const before = await installedFiles();
    const system = await start(cwd, [
      'up',
      '--port',
      '0',
      '--retrieval-budget-ms',
      '60000',
      '--index',
      join(installed(), 'examples', 'shop'),
    ]);
    const { url, body } = printedCurl(system.output());
    expect(body).toEqual({ ...SAMPLE_BODY, stream: true, rag: { repo: 'shop', path: SAMPLE.path } });
    expect(system.output()).toContain(`Logs: ${join(cwd, '.llavacode', 'logs')}\n`);
    // What people see first: the line that is right is right because of the context.
    const compressed = await complete(url, { ...body, stream: false });
    expect(compressed).toMatchObject({ model: 'tiny-coder', choices: [{ text: SAMPLE.rest }] });
    expect(compressed.rag?.chunks).toHaveLength(10);
    const { choices } = await complete(url, { ...body, stream: false, rag: undefined });
    expect(choices[0]?.text).not.toBe(SAMPLE.rest);
    const accepted = await llavacode(cwd, 'acceptance', '--url', new URL(url).origin);
    expect(accepted.stdout).toMatch(/ cases: \d+ passed, 0 failed, /);
    expect(accepted.stdout).not.toContain('this suite has no case for it');
    system.child.kill('SIGINT');
    expect(await once(system.child, 'exit')).toEqual([0, null]);
    expect((await readdir(join(cwd, '.llavacode'))).sort()).toEqual(['bundles', 'logs', 'store']);
    expect(await readdir(cwd)).toEqual(['.llavacode']);
    // The package may lie in a folder that is not writable.
    expect(await installedFiles()).toEqual(before);
  });

  test('prints a request without rag where nothing is indexed', { timeout: LIMIT }, async () => {
    const cwd = await folder('up-without-index');
    const system = await start(cwd, ['up', '--port', '0']);
    const { url, body } = printedCurl(system.output());
    expect(body).toEqual({ ...SAMPLE_BODY, stream: true });
    expect((await complete(url, { ...body, stream: false })).rag).toBeUndefined();
    // The commands that it prints work from any folder.
    expect(system.output()).toContain(`index --name NAME --path DIR --url ${new URL(url).origin}\n`);
    expect(system.output()).toContain(`Logs: ${join(cwd, '.llavacode', 'logs')}\n`);
    system.child.kill('SIGINT');
    expect(await once(system.child, 'exit')).toEqual([0, null]);
  });

  test('runs the demo, which leaves nothing in that folder', { timeout: LIMIT }, async () => {
    const cwd = await folder('demo');
    const { stdout } = await llavacode(cwd, 'demo');
    expect(stdout).toMatch(/^without context .+ {3}✘$/m);
    expect(stdout).toContain(`\nchunks compressed   ${SAMPLE.rest.trim()}   ✔\n`);
    expect(stdout).toMatch(/^off +\d+ +0 +[\d.]+ \([\d.]+ to [\d.]+\)/m);
    expect(stdout).toMatch(/^compressed +\d+ +10 +[\d.]+ \([\d.]+ to [\d.]+\)/m);
    expect(await readdir(cwd)).toEqual([]);
  });
});

interface Answer {
  readonly model: string;
  readonly choices: readonly { readonly text: string }[];
  readonly rag?: { readonly chunks: readonly unknown[] };
}

async function complete(url: string, body: object): Promise<Answer> {
  const response = await fetch(url, {
    method: 'POST',
    headers: { 'content-type': 'application/json' },
    body: JSON.stringify(body),
  });
  expect(response.status).toBe(200);
  return (await response.json()) as Answer;
}

/** The request that `up` prints to paste. */
function printedCurl(output: string): { url: string; body: object } {
  const [, url = '', body = ''] = /^curl -N (\S+) .* -d '(.*)'$/m.exec(output) ?? [];
  return { url, body: JSON.parse(body) as object };
}

interface Started {
  readonly child: ChildProcess;
  /** What it has printed on stdout. */
  output(): string;
}

/** Starts `llavacode` and waits until it serves; it is killed, with what it started, when the test ends. */
async function start(cwd: string, words: readonly string[]): Promise<Started> {
  const child = spawn(command(), words, { cwd, env: environment(), stdio: ['ignore', 'pipe', 'pipe'] });
  onTestFinished(() => void child.kill('SIGKILL')); // the services end when they lose their supervisor
  let [output, errors] = ['', ''];
  child.stderr.on('data', (bytes) => {
    errors += bytes;
  });
  await new Promise<void>((resolve, reject) => {
    child.stdout.on('data', (bytes) => {
      output += bytes;
      if (output.includes('Ctrl-C stops it')) resolve();
    });
    child.once('exit', () => reject(new Error(`llavacode ${words.join(' ')} ended:\n${output}${errors}`)));
  });
  return { child, output: () => output };
}
