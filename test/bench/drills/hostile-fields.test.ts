/** The hostile values of every field: none is left out, and none is a fault of the gateway. */
import { expect, test } from 'vitest';
import { type Description, fieldBodies } from '../../../bench/drills/hostile-fields.ts';
import { fakeGateway } from '../../support/fake-gateway.ts';

const BYTES = 20_000;
const gateway = await fakeGateway({ token: () => 70 });
const api: Description = (await gateway.app.inject('/docs/json')).json();

test('every field of every body is tried, those of objects and of lists within them as well', () => {
  const fields = new Map<string, Set<string>>();
  for (const { path, field, body } of fieldBodies(api, BYTES)) {
    if (!fields.has(path)) fields.set(path, new Set());
    fields.get(path)!.add(field);
    expect(Buffer.byteLength(body)).toBeLessThanOrEqual(BYTES);
  }
  const has = (path: string, ...named: string[]) =>
    expect([...fields.get(path)!]).toEqual(expect.arrayContaining(named));
  has('/v1/completions', 'stop_at', 'n_indent', 'language', 'session', 'cache_salt', 'rag.repo', 'rag.files[].text');
  has('/v1/completions', 'segments.prefix', 'segments.declarations[].body', 'debug_options.raw_prompt', 'user');
  has('/infill', 'input_extra[].filename', 'id_slot', 'response_fields', 'rag.files[].path');
  has('/api/generate', 'options.num_predict', 'options.stop', 'session');
  has('/v1/fim/completions', 'suffix', 'random_seed');
  has('/v1/chat/completions', 'messages[].content', 'stream_options.include_usage');
  has('/detokenize', 'tokens');
  has('/v1/events', 'completion_id');
  // Two routes with the same body, such as `/v1/fim/completions` and `/fim/completions`, are read by the same code.
  const bodies = Object.values(api.paths).flatMap(({ post }) => post?.requestBody?.content['application/json'] ?? []);
  const different = new Set(
    bodies.flatMap(({ schema }) => (schema.anyOf ?? schema.oneOf ?? [schema]).map((one) => JSON.stringify(one))),
  );
  has('/v1/rollout', 'bundle', 'share', 'action');
  expect(fields.size).toBe(different.size - 3); // OpenAI's and Tabby's have one path, and the three words of rollouts
});

test('a value that may be long is tried at its limit and beyond', () => {
  const of = (wanted: string) =>
    [...fieldBodies(api, BYTES)]
      .filter(({ path, field }) => path === '/v1/completions' && field === wanted)
      .map(({ body }) => JSON.parse(body)[wanted]);
  expect(of('session').map((value) => value.length)).toEqual([expect.any(Number), 256, expect.any(Number), 256]);
  expect(of('stop').map((value) => value.length)).toContain(16);
});

test('none is answered with a fault of the gateway, and what is within its limits is taken', async () => {
  const taken = new Set<string>();
  for (const { path, field, value, body } of fieldBodies(api, BYTES)) {
    const headers = { 'content-type': 'application/json' };
    const { statusCode: status, payload } = await gateway.app.inject({
      method: 'POST',
      url: path,
      headers,
      payload: body,
    });
    expect([path, field, value, status < 500, payload.slice(0, 300)]).toMatchObject({ 3: true });
    if (status === 200) taken.add(`${path} ${field}: ${value}`);
  }
  expect(taken).toContain('/v1/completions session: a text as long as it may be');
  expect(taken).toContain('/v1/completions segments.declarations[].body: a text');
  expect(taken).toContain('/infill input_extra[].text: a text');
  expect(taken).toContain('/tokenize content: a text');
}, 120_000);
