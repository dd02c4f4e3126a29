/** The acceptance suite against gateways on fake workers: what it finds, what it calls not offered, what it leaves. */
import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { join } from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { ROUTES } from '../../../bench/acceptance/cases.ts';
import { acceptanceReport } from '../../../bench/acceptance/run.ts';
import { type Kind, routesOf, runAcceptance, type Verdict } from '../../../bench/acceptance/suite.ts';
import { ServingError } from '../../../services/lib/process/errors.ts';
import { collectProcessMetrics } from '../../../services/lib/process/metrics.ts';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';
import { bearer, keyEntry, keysOf } from '../../support/api-keys.ts';
import { type FakeGatewayOptions, listeningGateway } from '../../support/fake-gateway.ts';
import { fakeIndexer } from '../../support/fake-indexer.ts';

collectProcessMetrics('gateway');

const { signal } = new AbortController();
const target = (port: number, key = '') => ({ url: `http://127.0.0.1:${port}`, key, timeoutMs: 60_000, signal });
const failed = (verdicts: readonly Verdict[]) => verdicts.filter(({ outcome }) => outcome === 'failed');
const reasonOf = (verdicts: readonly Verdict[], route: string, kind: Kind) =>
  verdicts.find((verdict) => verdict.route === route && verdict.kind === kind)?.reason;

/** A gateway that is ready: its workers have served a first completion. @returns its port. */
async function gatewayOn(options: FakeGatewayOptions = {}, key = ''): Promise<number> {
  const settings = { slotsRoute: true, page: new Map(), connectTimeoutMs: 60_000, ...options };
  const { app, port, readiness } = await listeningGateway({ token: () => 70 }, settings);
  const first = { method: 'POST', url: '/v1/completions', headers: bearer(key), payload: { prompt: 'a' } } as const;
  expect((await app.inject(first)).statusCode).toBe(200);
  await readiness.check();
  return port;
}

/** A server that has nothing but a description. @returns its port. */
async function emptyServer(description: object): Promise<number> {
  const server = createServer(({ url }, response) =>
    response.end(url === '/docs/json' ? JSON.stringify(description) : '{}'),
  );
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  onTestFinished(() => server.closeAllConnections());
  onTestFinished(() => void server.close());
  return (server.address() as AddressInfo).port;
}

test('every route of docs/openapi.json has its cases, and no case is of a route that there is not', async () => {
  const description = JSON.parse(await readFile(join(PACKAGE_ROOT, 'docs/openapi.json'), 'utf8'));
  expect(ROUTES.map(({ route }) => route).sort()).toEqual(routesOf(description).sort());
});

test('a gateway with keys, a store and an indexer passes every case, and keeps nothing of the suite', async () => {
  const { store, client } = await fakeIndexer();
  const keys = await keysOf([keyEntry('secret', 'acme', { access: 'admin' })]);
  const inspectBundle = async () => {
    throw new ServingError('bundle_invalid', 'there is no bundle');
  };
  const rollouts = { rollouts: true, inspectBundle };
  const port = await gatewayOn({ keys, store, indexer: client, ...rollouts }, 'secret');
  const { verdicts, withoutCase } = await runAcceptance(target(port, 'secret'), false);
  expect(verdicts.filter(({ outcome }) => outcome !== 'passed').map(({ route, reason }) => [route, reason])).toEqual([
    ['POST /v1/chat/completions', 'the model has no chat template'],
    ['POST /v1/chat/completions', 'the model has no chat template'],
  ]);
  expect(withoutCase).toEqual([]);
  expect(verdicts.filter(({ kind }) => kind === 'answers')).toHaveLength(ROUTES.length);
  expect(verdicts.filter(({ kind }) => kind === 'wrong key').length).toBe(ROUTES.length - 3); // probes are open
  expect(await store.repositories('acme')).toEqual([]);
});

test('a key that has ended is refused at every route but the probes, and a gateway that takes it fails these cases', async () => {
  const expires = '2026-01-01T00:00:00Z';
  const entries = [keyEntry('secret', 'acme', { access: 'admin' }), keyEntry('old', 'acme', { expires })];
  const run = async (nowMs: number) => {
    const port = await gatewayOn({ keys: await keysOf(entries, () => nowMs) }, 'secret');
    const { verdicts } = await runAcceptance({ ...target(port, 'secret'), expiredKey: 'old' }, true);
    return verdicts.filter(({ kind, reason }) => kind === 'ended key' && reason !== 'the run only reads');
  };
  const refused = await run(Date.parse(expires));
  expect(refused.length).toBeGreaterThan(ROUTES.length / 2);
  expect(failed(refused)).toEqual([]);
  const taken = await run(Date.parse(expires) - 1);
  expect(failed(taken)).toHaveLength(taken.length);
});

test('what a gateway does not offer, and what a key may not do, is named and is no failure', async () => {
  const keys = await keysOf([keyEntry('editor', 'acme', { access: 'complete' })]);
  const port = await gatewayOn({ keys, slotsRoute: false }, 'editor');
  const { verdicts } = await runAcceptance(target(port, 'editor'), false);
  expect(failed(verdicts)).toEqual([]);
  expect(reasonOf(verdicts, 'GET /metrics', 'answers')).toBe('the key has less access than the route needs');
  expect(reasonOf(verdicts, 'PUT /v1/repos/{*}', 'answers')).toBe('the key has less access than the route needs');
  expect(reasonOf(verdicts, 'GET /v1/repos', 'answers')).toBe('the deployment has no store, or does not reach it');
  const open = await gatewayOn({ slotsRoute: false, page: undefined });
  const others = await runAcceptance(target(open), true);
  expect(failed(others.verdicts)).toEqual([]);
  expect(reasonOf(others.verdicts, 'GET /slots', 'answers')).toBe('--slots-route is off');
  expect(reasonOf(others.verdicts, 'POST /v1/rollout', 'answers')).toBe('--rollouts is off');
  expect(reasonOf(others.verdicts, 'GET /admin/api/left-out', 'answers')).toBe('--admin-page is off');
  expect(reasonOf(others.verdicts, 'POST /infill', 'no key')).toBe('the deployment has no keys');
  expect(reasonOf(others.verdicts, 'DELETE /v1/repos/{*}', 'answers')).toBe('the run only reads');
});

test('a server that answers everything with 200 and nothing fails every case, and the report says why', async () => {
  const result = await runAcceptance(target(await emptyServer({ paths: {} })), true);
  const passed = result.verdicts.filter(({ outcome }) => outcome === 'passed');
  expect(passed).toEqual([]);
  const report = acceptanceReport(result);
  expect(report).toContain('| POST /v1/completions | ✘ | ✘ | ✘ | ○ | ○ |  | ✘ |');
  expect(report).toContain('✘ POST /v1/completions, other method: HTTP 200 instead of 405: {}');
});

test('a route that the deployment has and the suite does not is named', async () => {
  const description = { paths: { '/v2/new': { post: {} }, '/livez': { get: {} } } };
  const result = await runAcceptance(target(await emptyServer(description)), true);
  expect(result.withoutCase).toEqual(['POST /v2/new']);
  expect(acceptanceReport(result)).toContain('? POST /v2/new: this suite has no case for it');
});

test('an interrupted run removes the repository that it has indexed', async () => {
  const { store, client } = await fakeIndexer();
  const port = await gatewayOn({ store, indexer: client });
  const stop = new AbortController();
  const stopAfter = ({ route, kind }: Verdict) => {
    if (route === 'PUT /v1/repos/{*}' && kind === 'answers') stop.abort(new Error('enough'));
  };
  const run = runAcceptance({ ...target(port), signal: stop.signal }, false, stopAfter);
  await expect(run).rejects.toThrow('enough');
  expect(await store.repositories('default')).toEqual([]);
});
