/** For tests whose requests send no files: nothing may ask for the chunks of any. */
export const NO_OVERLAYS = {
  of: async (): Promise<never> => {
    throw new Error('a request without an overlay asked for one');
  },
  vectorsOf: async (): Promise<never> => {
    throw new Error('a request without an overlay asked for vectors');
  },
  encodeAhead: () => {},
};
