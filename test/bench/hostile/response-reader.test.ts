import fc from 'fast-check';
import { expect, test } from 'vitest';
import { ResponseReader } from '../../../bench/hostile/response-reader.ts';

const BYTES = Buffer.from(
  [
    'HTTP/1.1 100 Continue\r\n\r\n',
    'HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhe\r\nl\r\n2\r\nlo\r\n0\r\n\r\n',
    'HTTP/1.1 429 Too Many Requests\r\ncontent-length: 4\r\n\r\nwait',
    'HTTP/1.1 204 No Content\r\n\r\n',
    'HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\na;x=y\r\n0123456789\r\n0\r\nTrailer: t\r\n\r\n',
  ].join(''),
);

function read(parts: readonly Buffer[]): string[] {
  const answers: string[] = [];
  let body = '';
  const reader = new ResponseReader({
    onHead: (status) => {
      body = `${status} `;
    },
    onBody: (bytes) => {
      body += bytes.toString();
    },
    onEnd: () => answers.push(body),
  });
  for (const part of parts) reader.feed(part);
  return answers;
}

test('answers on one connection are taken apart, however their bytes arrive', () => {
  const expected = ['200 he\r\nllo', '429 wait', '204 ', '200 0123456789'];
  expect(read([BYTES])).toEqual(expected);
  fc.assert(
    fc.property(fc.array(fc.nat(BYTES.length)), (cuts) => {
      const ends = [...cuts.sort((a, b) => a - b), BYTES.length];
      expect(read(ends.map((end, i) => BYTES.subarray(ends[i - 1] ?? 0, end)))).toEqual(expected);
    }),
  );
});
