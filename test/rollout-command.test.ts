/** `llavacode rollout` against a gateway that listens. */
import { execFile } from 'node:child_process';
import { once } from 'node:events';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { text } from 'node:stream/consumers';
import { promisify } from 'node:util';
import { expect, onTestFinished, test, vi } from 'vitest';
import { PACKAGE_ROOT } from '../services/lib/process/package-root.ts';
import { runRollout } from '../services/rollout-command.ts';
import { listeningGateway, spelling } from './support/fake-gateway.ts';

const CLI = join(PACKAGE_ROOT, 'dist/services/cli.js');
const SIGNAL = new AbortController().signal;
const FINGERPRINT = 'c'.repeat(64);

function printed() {
  const lines: string[] = [];
  const write = vi.spyOn(process.stdout, 'write').mockImplementation((line) => lines.push(String(line)) > 0);
  onTestFinished(() => write.mockRestore());
  return lines;
}

const configOf = (url: string) => ({ url, apiKey: 'k', apiKeyFile: '' });

async function gateway() {
  const { port, rollout } = await listeningGateway(
    { token: spelling('x') },
    {
      rollouts: true,
      inspectBundle: async () => FINGERPRINT,
      openModel: async () => {
        throw new Error('the bundle is still on its way');
      },
    },
  );
  return { config: configOf(`http://127.0.0.1:${port}/`), rollout };
}

test('the command starts a rollout, says how it stands and rolls back', async () => {
  const [{ config }, lines] = [await gateway(), printed()];
  await runRollout(config, { action: 'status' }, SIGNAL);
  expect(lines.at(-1)).toBe(`no rollout: ${'f'.repeat(16)}… serves all requests\n`);
  const start = { action: 'start', bundle: '/bundles/next', share: 7, by: 'tenant', indexer: '' } as const;
  const answer = await runRollout(config, start, SIGNAL);
  expect(answer).toMatchObject({ phase: 'preparing', share: 7, by: 'tenant', candidate: { fingerprint: FINGERPRINT } });
  await vi.waitUntil(async () => {
    await runRollout(config, { action: 'status' }, SIGNAL);
    return lines.at(-1)?.includes('still on its way');
  });
  expect(lines.at(-1)).toMatch(/^preparing \/bundles\/next \(c{16}…\); it serves nothing yet: /);
  await expect(runRollout(config, { action: 'promote' }, SIGNAL)).rejects.toMatchObject({ code: 'invalid_request' });
  expect(await runRollout(config, { action: 'rollback' }, SIGNAL)).toMatchObject({ phase: 'none', candidate: null });
});

test('options that are left out are not sent, so a larger share keeps the indexer and whose share it is', async () => {
  const { config, rollout } = await gateway();
  const given = async (...words: string[]) => {
    const all = [CLI, 'rollout', 'start', '--url', config.url, '--api-key', config.apiKey, '--bundle', '/bundles/next'];
    await promisify(execFile)(process.execPath, [...all, ...words]);
    const { indexer, share, by } = rollout.status.state!;
    return { indexer, share, by };
  };
  const asked = { indexer: '127.0.0.1:9', share: 0, by: 'tenant' };
  expect(await given('--canary', '0', '--reembed-by', '127.0.0.1:9', '--by', 'tenant')).toEqual(asked);
  expect(await given('--canary', '5')).toEqual({ ...asked, share: 5 });
  expect(await given('--reembed-by', '')).toEqual({ ...asked, share: 5, indexer: '' });
});

test('what is served by whom is said in words', async () => {
  const [lines, answers] = [printed(), [] as object[]];
  const server = createServer(async (request, response) => {
    await text(request);
    response.setHeader('content-type', 'application/json').end(JSON.stringify(answers.shift()));
  }).listen(0, '127.0.0.1');
  onTestFinished(() => void server.close());
  await once(server, 'listening');
  const config = configOf(`http://127.0.0.1:${(server.address() as AddressInfo).port}`);
  const candidate = { bundle: '/next', fingerprint: FINGERPRINT };
  const common = { stable: { fingerprint: 'f'.repeat(64) }, candidate, share: 5, by: 'session', problem: null };
  const index = { repositories: 3, current: 2, embedded: 812 };
  answers.push({ ...common, phase: 'canary', workers: { prefill: 1, decode: 2 }, index });
  answers.push({ ...common, phase: 'promoted', workers: null, index: null });
  answers.push({ ...common, phase: 'done', workers: null, index: null });
  for (let i = 0; i < 3; i++) await runRollout(config, { action: 'status' }, SIGNAL);
  expect(lines).toEqual([
    `/next (${'c'.repeat(16)}…) serves 5 % by session, ${'f'.repeat(16)}… the rest\n` +
      'workers: 1 prefill, 2 decode\nside indexes: 2 of 3 repositories, 812 chunks encoded\n',
    `/next (${'c'.repeat(16)}…) serves all requests; ${'f'.repeat(16)}… is ready to come back\n`,
    `/next (${'c'.repeat(16)}…) is what this gateway was started with: the rollout is over\n`,
  ]);
});

test('a gateway that is not there, and one without rollouts, are said so', async () => {
  printed();
  const nobody = configOf('http://127.0.0.1:1');
  await expect(runRollout(nobody, { action: 'status' }, SIGNAL)).rejects.toMatchObject({ code: 'address_unusable' });
  const { port } = await listeningGateway({ token: spelling('x') });
  const off = configOf(`http://127.0.0.1:${port}`);
  await expect(runRollout(off, { action: 'status' }, SIGNAL)).rejects.toMatchObject({ code: 'not_found' });
});
