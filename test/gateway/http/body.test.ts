import type { AddressInfo } from 'node:net';
import { connect } from 'node:net';
import * as zlib from 'node:zlib';
import { brotliCompressSync, deflateSync, gzipSync } from 'node:zlib';
import { describe, expect, onTestFinished, test } from 'vitest';
import { jsonOfFiles, tarOfFiles } from '../../support/archives.ts';
import { fakeGateway, spelling } from '../../support/fake-gateway.ts';
import { fakeIndexer } from '../../support/fake-indexer.ts';

const token = spelling('ab');
const BODY = Buffer.from(JSON.stringify({ prompt: 'x = ', max_tokens: 4 }));
const FILES = { 'a.py': 'alpha = 1\n', 'b.py': 'beta = 2\n' };

async function start() {
  const { store, client } = await fakeIndexer();
  const gateway = await fakeGateway({ token }, { store, indexer: client, connectTimeoutMs: 10_000 });
  const send = (method: 'POST' | 'PUT', url: string, payload: Buffer, headers: Record<string, string>) =>
    gateway.app.inject({ method, url, payload, headers: { 'content-type': 'application/json', ...headers } });
  return {
    ...gateway,
    complete: (payload: Buffer, headers: Record<string, string> = {}) =>
      send('POST', '/v1/completions', payload, headers),
    upload: (payload: Buffer, headers: Record<string, string> = {}) => send('PUT', '/v1/repos/shop', payload, headers),
  };
}

const refusal = (code: string, message: RegExp) => ({ error: { code, message: expect.stringMatching(message) } });

describe('a body with a content-encoding', () => {
  const zstd = (zlib as { zstdCompressSync?: (data: Buffer) => Buffer }).zstdCompressSync;
  const encodings: [string, (data: Buffer) => Buffer][] = [
    ['gzip', gzipSync],
    ['x-gzip', gzipSync],
    ['GZIP', gzipSync],
    ['deflate', deflateSync],
    ['br', brotliCompressSync],
    ['identity', (data) => data],
    ['identity, gzip', gzipSync],
    ...(zstd ? [['zstd', zstd] as [string, (data: Buffer) => Buffer]] : []),
  ];
  test.each(encodings)('a completion and an upload with content-encoding %s are served', async (coding, encode) => {
    const { complete, upload } = await start();
    const headers = { 'content-encoding': coding };
    const completion = await complete(encode(BODY), headers);
    expect([completion.statusCode, completion.json().choices[0].text]).toEqual([200, 'ab']);
    const files = await upload(encode(jsonOfFiles(FILES)), headers);
    expect([files.statusCode, files.json()]).toMatchObject([200, { files: 2 }]);
    const tar = await upload(encode(await tarOfFiles(FILES)), { ...headers, 'content-type': 'application/x-tar' });
    expect([tar.statusCode, tar.json()]).toMatchObject([200, { files: 2, changed: false }]);
  });

  test('an encoding that is not known is refused, and the answer names those that are', async () => {
    const { complete, upload } = await start();
    for (const coding of ['compress', 'gzip, gzip', 'x'.repeat(10_000)]) {
      for (const answer of [
        await complete(BODY, { 'content-encoding': coding }),
        await upload(BODY, { 'content-encoding': coding }),
      ]) {
        expect(answer.statusCode).toBe(415);
        expect(answer.json()).toMatchObject(
          refusal('unsupported_media_type', /^content-encoding .{1,100} is not accepted: use one of gzip, deflate, br/),
        );
        expect(answer.headers['accept-encoding']).toContain('gzip, deflate, br');
      }
    }
  });

  test('a body that is not what its encoding says is refused', async () => {
    const { complete, upload } = await start();
    const headers = { 'content-encoding': 'gzip' };
    for (const damaged of [BODY, gzipSync(BODY).subarray(0, -9)]) {
      for (const answer of [await complete(damaged, headers), await upload(damaged, headers)]) {
        expect(answer.statusCode).toBe(400);
        expect(answer.json()).toMatchObject(refusal('invalid_request', /not valid gzip/));
      }
    }
  });

  test('a body that is small on the wire and too large when decoded is refused', async () => {
    const { complete, upload } = await start();
    const bomb = gzipSync(Buffer.alloc(64 * 1024 * 1024, ' '));
    const completion = await complete(bomb.subarray(0, 60_000), { 'content-encoding': 'gzip' });
    expect(completion.statusCode).toBe(413);
    expect(completion.json()).toMatchObject(refusal('payload_too_large', /--body-limit-bytes/));
    const files = await upload(bomb, { 'content-encoding': 'gzip' });
    expect([files.statusCode, files.json().error.code]).toEqual([413, 'payload_too_large']);
  });

  test('an upload within the limit that decodes to a hundred times its size is refused', async () => {
    const { store, client } = await fakeIndexer();
    const maxUploadBytes = 1024 ** 3;
    const { app } = await fakeGateway({ token }, { store, indexer: client, connectTimeoutMs: 10_000, maxUploadBytes });
    const answer = await app.inject({
      method: 'PUT',
      url: '/v1/repos/shop',
      headers: { 'content-type': 'application/x-tar', 'content-encoding': 'gzip' },
      payload: gzipSync(Buffer.alloc(64 * 1024 * 1024)),
    });
    expect([answer.statusCode, answer.json().error.code]).toEqual([413, 'payload_too_large']);
  });

  test('the connection is usable after an upload that was not decoded to its end', async () => {
    const { app } = await start();
    await app.listen({ host: '127.0.0.1', port: 0 });
    onTestFinished(() => {
      app.server.closeAllConnections();
      return app.close();
    });
    const bomb = gzipSync(Buffer.alloc(40 * 1024 * 1024, ' '));
    const head = (call: string, more: string) =>
      `${call} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n${more}\r\n\r\n`;
    const socket = connect((app.server.address() as AddressInfo).port, '127.0.0.1');
    onTestFinished(() => void socket.destroy());
    let seen = '';
    socket.on('data', (data) => {
      seen += data;
    });
    socket.write(head('PUT /v1/repos/shop', `content-encoding: gzip\r\ntransfer-encoding: chunked`));
    for (let at = 0; at < bomb.length; at += 8192) {
      const part = bomb.subarray(at, at + 8192);
      socket.write(`${part.length.toString(16)}\r\n`);
      socket.write(part);
      socket.write('\r\n');
    }
    socket.write(`0\r\n\r\n${head('POST /v1/completions', `content-length: ${BODY.length}`)}${BODY}`);
    await expect.poll(() => seen).toMatch(/HTTP\/1\.1 413 .*HTTP\/1\.1 200 /s);
  });
});

describe('the characters of a body', () => {
  test('a byte order mark is skipped', async () => {
    const { complete, upload } = await start();
    const marked = (json: Buffer) => Buffer.concat([Buffer.from('\ufeff'), json]);
    expect((await complete(marked(BODY))).statusCode).toBe(200);
    expect((await upload(marked(jsonOfFiles(FILES)))).statusCode).toBe(200);
  });

  test('a body that is not UTF-8 is refused: no character is replaced in silence', async () => {
    const { complete, upload, workers } = await start();
    const latin1 = (text: string) => Buffer.from(text, 'latin1');
    const completion = await complete(latin1('{"prompt":"café = ","max_tokens":1}'));
    expect(completion.statusCode).toBe(400);
    expect(completion.json()).toMatchObject(refusal('invalid_request', /not valid UTF-8/));
    const files = await upload(latin1('{"files":[{"path":"a.py","content":"café"}]}'));
    expect(files.statusCode).toBe(400);
    expect(workers.prefills).toEqual([]);
  });

  test.each(['utf-8', 'UTF8', '"utf-8"', 'us-ascii'])('charset=%s is accepted', async (charset) => {
    const { complete, upload } = await start();
    const headers = { 'content-type': `application/json; charset=${charset}` };
    expect((await complete(BODY, headers)).statusCode).toBe(200);
    expect((await upload(jsonOfFiles(FILES), headers)).statusCode).toBe(200);
  });

  test.each(['iso-8859-1', 'UTF-16', 'windows-1252'])('charset=%s is refused by name', async (charset) => {
    const { complete, upload } = await start();
    const headers = { 'content-type': `application/json; charset=${charset}` };
    for (const answer of [await complete(BODY, headers), await upload(jsonOfFiles(FILES), headers)]) {
      expect(answer.statusCode).toBe(415);
      expect(answer.json()).toMatchObject(
        refusal('unsupported_media_type', new RegExp(`^charset ${charset} is not`, 'i')),
      );
    }
  });
});

describe('JSON of 4 MiB', () => {
  const bodyLimitBytes = 4 * 1024 * 1024;
  const list = (part: string, count: number) => `[${Array(count).fill(part).join(',')}]`;
  const answerTo = async (payload: string) => {
    const { app } = await fakeGateway({ token }, { bodyLimitBytes });
    const headers = { 'content-type': 'application/json' };
    return app.inject({ method: 'POST', url: '/v1/completions', payload, headers });
  };

  test.each([
    ['brackets within brackets', '['.repeat(2_000_000), /nested more than 32 deep/],
    ['arrays', `{"prompt":${list('[1]', 1_000_000)}}`, /more than 2048 arrays and objects/],
    ['strings', `{"prompt":${list('"a"', 1_000_000)}}`, /more than 4096 strings/],
    [
      'fields',
      `{${Array.from({ length: 300_000 }, (_, i) => `"k${i}":1`).join(',')}}`,
      /more than 4096 names of fields/,
    ],
    ['numbers', `{"prompt":${list('1', 2_000_000)}}`, /more than 1000000 numbers/],
  ])('a body with more %s than any request needs is refused, and the message says so', async (_, payload, message) => {
    const answer = await answerTo(payload);
    expect([answer.statusCode, answer.json()]).toMatchObject([400, refusal('invalid_request', message)]);
  });

  test('a prompt of 600,000 token ids is read, and cut if it may be', async () => {
    const answer = await answerTo(`{"prompt":${list('100', 600_000)},"truncate_prompt_tokens":9,"max_tokens":2}`);
    expect([answer.statusCode, answer.json().usage?.prompt_tokens]).toEqual([200, 9]);
  });
});
