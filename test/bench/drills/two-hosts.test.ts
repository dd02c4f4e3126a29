/** The system on two hosts, as the chart starts it: where this machine cannot have hosts, the drill says why. */
import { mkdir, mkdtemp, readdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { execa } from 'execa';
import { expect, onTestFinished, test, vi } from 'vitest';
import { Cluster } from '../../../bench/drills/cluster.ts';
import { NamespaceNetwork } from '../../../bench/drills/network.ts';
import { runDrill } from '../../../bench/drills/run-drill.ts';
import { makeReferences } from '../../../bench/drills/streams.ts';
import { twoHostsDrills } from '../../../bench/drills/two-hosts.ts';
import { PromptMaker } from '../../../bench/system/prompts.ts';
import { exportBundle } from '../../../services/lib/model/bundle/export-bundle.ts';
import { loadTokenizer } from '../../../services/lib/text/tokenizer.ts';
import { startRedis } from '../../support/redis.ts';

/** Ten processes start slowly beside other tests. */
vi.setConfig({ testTimeout: 900_000 });

const MODEL = join(import.meta.dirname, '..', '..', '..', 'models', 'tiny-coder');
const HOW = { rate: 1, seed: 1, count: 1, seconds: 0.5 };
const LACKING = /^needs (network namespaces|ports of its own) \(.+\)$/;

async function folder(): Promise<string> {
  const dir = await mkdtemp(join(tmpdir(), 'llavacode-two-hosts-'));
  onTestFinished(() => rm(dir, { recursive: true, force: true }));
  return dir;
}

/** Namespaces, links and files of this process. */
async function traces(): Promise<string[]> {
  const { stdout } = await execa('sh', ['-c', 'ip netns list; ip link show']);
  const files = await readdir('/etc/netns').catch(() => []);
  return [...stdout.split('\n'), ...files].filter((line) => line.includes(`lcd${process.pid}`));
}

test('pods are found by name, replaced elsewhere, and kept while name servers and the cable fail', async () => {
  await (await startRedis()).stop(); // fetches Redis if there is none
  const dir = await folder();
  const path = join(dir, 'repo');
  await mkdir(path);
  for (const name of ['cart', 'order', 'stock']) {
    const code = Array.from({ length: 30 }, (_, i) => `def ${name}_${i}(value):\n    return value * ${i}\n`);
    await writeFile(join(path, `${name}.py`), code.join('\n'));
  }
  const bundle = join(dir, 'exported');
  await exportBundle({ llm: MODEL, to: bundle, precision: 'fp32' });
  const cluster = await Cluster.open({ bundle, data: join(dir, 'data'), repo: 'drilled', path });
  if (typeof cluster === 'string') return expect(cluster).toMatch(LACKING);
  let isOpen = true;
  const close = async () => {
    if (isOpen) await cluster.close();
    isOpen = false;
  };
  onTestFinished(close);
  expect(await traces()).not.toEqual([]);
  const prompts = await PromptMaker.load('drilled', path, await loadTokenizer(MODEL));
  // The chart's gateways look for context for a few ms alone, which a busy machine does not always give.
  const calm = () => makeReferences(cluster, prompts, 2).catch(() => undefined);
  const references = await vi.waitUntil(calm, { timeout: 600_000 });
  const none = { storeLink: undefined, redis: undefined, store: '' };
  const ground = { ...none, bundle, path, fleet: cluster, cluster, close };
  const drills = twoHostsDrills({ minReadyMs: 1_500, dnsCacheMs: 1_000 }, 2_000);
  const run = async (words: string) => {
    const result = await runDrill(drills.find(({ name }) => name.includes(words))!, references, ground, HOW);
    expect(result).toMatchObject({ lostTokens: 0, doubledTokens: 0 });
    // The chart's gateways refuse what would wait for 2 s: a busy machine brings that about without any fault.
    expect(Object.keys(result.failed).filter((code) => code !== 'saturated')).toEqual([]);
    expect(result.broken.replace(/^\d+ requests failed$/, '')).toBe('');
    expect(result.ok).toBeGreaterThan(0);
    return result.note;
  };
  expect(await run('found by name')).toMatch(/^every gateway uses 4 workers of the other host/);
  expect(await run('replaced')).toMatch(/^3 pods at new addresses; uploads at every gateway took \d+ ms after/);
  expect(await run('silent')).toMatch(/: \d+ \(silent\), \d+ \(no such name\), \d+ \(failed\)/);
  expect(await run('cut for 2 s')).toMatch(/^every gateway used all workers again \d+ ms after/);
  await close();
  expect(await traces()).toEqual([]);
});

test('hosts, pods and their files are removed, also those of a run that was killed', async () => {
  const gone = Number((await execa(process.execPath, ['-e', 'console.log(process.pid)'])).stdout);
  const abandoned = await NamespaceNetwork.open(gone).catch((error: Error) => error.message);
  if (typeof abandoned === 'string') return expect(abandoned).toMatch(LACKING);
  onTestFinished(() => abandoned.close());
  const [near, far] = [await abandoned.addHost(), await abandoned.addHost()];
  const resolvConf = 'nameserver 198.18.0.1\n';
  const [here, there] = [await near.join(resolvConf), await far.join(resolvConf)];
  const inside = async (place: typeof here, ...words: string[]) => {
    const [file, ...rest] = [...place.through, ...words];
    return (await execa(file!, rest)).stdout;
  };
  expect(await inside(here, 'cat', '/etc/resolv.conf')).toBe(resolvConf.trim());
  const hello = `require('net').createServer((s) => s.end('hello')).listen(9000, '0.0.0.0', () => console.log('up'))`;
  const [file, ...words] = [...there.through, process.execPath, '-e', hello];
  const server = execa(file!, words, { reject: false, buffer: false });
  onTestFinished(async () => {
    server.kill('SIGKILL');
    await server;
  });
  await new Promise((up) => server.stdout.once('data', up));
  const call = `require('net').connect(9000, '${there.host}').pipe(process.stdout)`;
  expect(await inside(here, process.execPath, '-e', call), 'pods of two hosts reach each other').toBe('hello');
  server.kill('SIGKILL');
  await server;
  await there.leave();
  const named = async () => (await execa('ip', ['netns', 'list'])).stdout;
  expect(await named()).not.toContain(there.through.at(-1));
  expect(await readdir('/etc/netns')).not.toContain(there.through.at(-1));
  expect(await readdir('/etc/netns')).toContain(here.through.at(-1));
  const next = await NamespaceNetwork.open();
  onTestFinished(() => next.close());
  expect(await named()).not.toContain(`lcd${gone}`);
  expect(await readdir('/etc/netns').catch(() => [])).not.toContain(here.through.at(-1));
});
