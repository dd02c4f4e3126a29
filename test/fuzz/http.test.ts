/** A gateway on fake workers: whatever is sent, it answers in its own words, and keeps nothing. */

import type { AddressInfo } from 'node:net';
import { connect } from 'node:net';
import fc from 'fast-check';
import { afterAll, expect, test } from 'vitest';
import { ERRORS, isErrorCode } from '../../services/lib/process/errors.ts';
import { metrics } from '../../services/lib/process/metrics.ts';
import { fakeGateway } from '../support/fake-gateway.ts';
import { damaged, distorted, fuzz, HANG_MS, TIMEOUT_MS } from './budget.ts';

const gateway = await fakeGateway(
  { token: (position, choice, seed) => 70 + ((position * 7 + choice + seed) % 100), slots: 200 },
  { requestTimeoutMs: HANG_MS, maxInflight: 1000, receiveTimeoutMs: 500 },
);
await gateway.app.listen({ host: '127.0.0.1', port: 0 });
afterAll(async () => {
  gateway.app.server.closeAllConnections();
  await gateway.app.close();
});

const VALID = {
  model: 'tiny',
  prompt: 'def f(a):\n    return ',
  suffix: '\n\nf(1)\n',
  max_tokens: 5,
  temperature: 0.7,
  top_p: 0.9,
  top_k: 5,
  min_p: 0.1,
  n: 2,
  best_of: 3,
  stop: ['\n\n', 'x'],
  seed: 7,
  logprobs: 2,
  echo: false,
  frequency_penalty: 0.1,
  presence_penalty: 0.1,
  logit_bias: { 70: -5, 4095: 100 },
  stream: true,
  stream_options: { include_usage: true, continuous_usage_stats: true },
  stop_token_ids: [99],
  ignore_eos: true,
  min_tokens: 1,
  return_token_ids: true,
  truncate_prompt_tokens: 20,
  rag: { repo: 'shop', mode: 'off', top_k: 3, path: 'a.py', retriever: 'bm25', max_text_tokens: 9 },
  timeout_ms: 5_000,
  priority: -3,
  cache_salt: 'salt',
};
const NAMES = Object.keys(VALID);
/** Some of the fields, near to what they should be. */
const bodies = fc
  .tuple(distorted(VALID), fc.subarray(NAMES, { maxLength: 8 }))
  .map(([body, names]) =>
    typeof body === 'object' && body !== null && !Array.isArray(body)
      ? Object.fromEntries(
          Object.entries(body).filter(([name]) => name === 'prompt' || names.includes(name) || !NAMES.includes(name)),
        )
      : body,
  );

const idle = async () => {
  await gateway.workers.idle();
  expect((await metrics.inflight.get()).values[0]?.value ?? 0).toBe(0);
};

test('HTTP bodies near the schema are answered or refused with a 4xx status, and leave nothing in flight', {
  timeout: TIMEOUT_MS,
}, async () => {
  await fuzz('HTTP bodies', bodies, async (body) => {
    const { statusCode, payload, headers } = await gateway.app.inject({
      method: 'POST',
      url: '/v1/completions',
      headers: { 'content-type': 'application/json' },
      payload: JSON.stringify(body),
    });
    if (statusCode === 200 && String(headers['content-type']).startsWith('text/event-stream')) {
      expect(payload.endsWith('data: [DONE]\n\n')).toBe(true);
      for (const event of payload.split('\n\n').slice(0, -2)) {
        const { error } = JSON.parse(event.slice('data: '.length));
        expect(error).toBeUndefined();
      }
    } else if (statusCode === 200) {
      for (const { finish_reason } of JSON.parse(payload).choices) expect(finish_reason).toMatch(/^(stop|length)$/);
    } else {
      const { error } = JSON.parse(payload);
      expect(isErrorCode(error.code) && ERRORS[error.code as keyof typeof ERRORS].http).toBe(statusCode);
      expect(statusCode, payload).toBeLessThan(500);
    }
    await idle();
    return statusCode === 200;
  });
});

const head = fc.oneof(
  fc.constant('POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n'),
  fc
    .tuple(
      fc.constantFrom('GET', 'POST', 'PUT', 'DELETE', 'HEAD', 'OPTIONS', 'PATCH', 'TRACE'),
      fc.webPath(),
      fc.dictionary(fc.stringMatching(/^[a-z-]{1,12}$/), fc.string({ maxLength: 20 }), { maxKeys: 4 }),
    )
    .map(([method, path, fields]) =>
      [
        `${method} ${path || '/'} HTTP/1.1`,
        'host: x',
        ...Object.entries(fields).map(([k, v]) => `${k}: ${v}`),
        '',
      ].join('\r\n'),
    ),
);
const request = fc
  .tuple(head, fc.oneof(fc.constant({ prompt: 'x', stream: true }), fc.jsonValue()))
  .map(([start, body]) => {
    const text = Buffer.from(JSON.stringify(body));
    return Buffer.concat([Buffer.from(`${start}content-length: ${text.length}\r\n\r\n`), text]);
  });

/** Sends the bytes, then nothing more; resolves with what came when the server is done with them. */
function send(bytes: Uint8Array): Promise<Buffer> {
  const { port } = gateway.app.server.address() as AddressInfo;
  return new Promise((resolve, reject) => {
    const parts: Buffer[] = [];
    const socket = connect({ port, host: '127.0.0.1' });
    const hang = setTimeout(() => {
      socket.destroy();
      reject(new Error(`no end within ${HANG_MS} ms; so far: ${Buffer.concat(parts)}`));
    }, HANG_MS);
    socket.on('data', (part) => parts.push(part));
    socket.on('error', () => {});
    socket.on('close', () => {
      clearTimeout(hang);
      resolve(Buffer.concat(parts));
    });
    socket.end(bytes);
  });
}

test('bytes near HTTP never get status 500, and leave the gateway alive', { timeout: TIMEOUT_MS }, async () => {
  await fuzz('HTTP bytes', fc.oneof(damaged(request), request, fc.uint8Array({ maxLength: 300 })), async (bytes) => {
    const answer = (await send(bytes)).toString('latin1');
    if (answer !== '') expect(answer).toMatch(/^HTTP\/1\.1 (?!500)\d{3} /);
    await idle();
    return answer.startsWith('HTTP/1.1 200 ');
  });
  const { statusCode } = await gateway.app.inject('/livez');
  expect(statusCode).toBe(200);
});
