import { join } from 'node:path';
import { expect, test } from 'vitest';
import { PACKAGE_ROOT } from '../../../services/lib/process/package-root.ts';
import { fakeGateway } from '../../support/fake-gateway.ts';

const FILE = join(PACKAGE_ROOT, 'docs/openapi.json');

interface Operation {
  readonly summary?: string;
  readonly security?: unknown[];
  readonly requestBody?: { readonly content: { readonly 'application/json': { readonly schema: object } } };
}
interface Description {
  readonly openapi: string;
  readonly paths: Readonly<Record<string, Readonly<Record<string, Operation>>>>;
}

async function description(): Promise<Description> {
  const { app } = await fakeGateway({ token: () => 70 });
  return (await app.inject('/docs/json')).json();
}

test('docs/openapi.json is what the routes say (npx vitest run test/gateway/http/docs.test.ts -u writes it anew)', async () => {
  await expect(`${JSON.stringify(await description(), null, 2)}\n`).toMatchFileSnapshot(FILE);
});

test('every route is described, with the fields of its body', async () => {
  const { paths } = await description();
  const { app } = await fakeGateway({ token: () => 70 });
  await app.ready();
  const routes = app.printRoutes({ commonPrefix: false });
  for (const url of ['/infill', '/api/generate', '/v1/fim/completions', '/v1/events', '/v1/chat/completions']) {
    const schema = paths[url]!['post']!.requestBody!.content['application/json'].schema as { properties: object };
    expect(Object.keys(schema.properties).length, url).toBeGreaterThan(2);
  }
  expect(Object.keys(paths).filter((url) => url.startsWith('/docs'))).toEqual([]);
  const operations = Object.values(paths).flatMap((methods) => Object.values(methods));
  expect(operations.length).toBeGreaterThan(25);
  expect(operations.filter(({ summary }) => !summary)).toEqual([]);
  expect(routes).toContain('infill');
  expect(paths['/livez']!['get']!.security).toEqual([]);
  expect(paths['/infill']!['post']!.security).toBeUndefined();
  const completions = JSON.stringify(paths['/v1/completions']!['post']);
  for (const field of ['max_tokens', 'logit_bias', 'segments', 'rag']) expect(completions).toContain(`"${field}"`);
});

test('the description is there to look at, without a key, and takes GET alone', async () => {
  const keys = {
    tenants: ['a'],
    identify: () => {
      throw new Error('nobody has a key');
    },
  };
  const { app } = await fakeGateway({ token: () => 70 }, { keys });
  const page = await app.inject('/docs/');
  expect([page.statusCode, page.headers['content-type']]).toEqual([200, expect.stringContaining('text/html')]);
  expect(page.headers['content-security-policy']).toContain("default-src 'self'");
  expect(page.headers['content-security-policy']).not.toContain('upgrade'); // many gateways have no TLS
  expect((await app.inject('/docs/json')).statusCode).toBe(200);
  expect((await app.inject({ method: 'POST', url: '/docs/json' })).statusCode).toBe(404);
  expect((await app.inject('/docs/static/../../package.json')).statusCode).toBe(404);
});
