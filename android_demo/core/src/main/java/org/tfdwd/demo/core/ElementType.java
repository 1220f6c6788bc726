package org.tfdwd.demo.core;

/** What one element of a tensor is held as. */
public enum ElementType {
    FLOAT32(4, 0, 0),
    UINT8(1, 0, 255),
    INT8(1, -128, 127),
    INT16(2, -32768, 32767);

    final int bytes;
    final int lowest;
    final int highest;

    ElementType(int bytes, int lowest, int highest) {
        this.bytes = bytes;
        this.lowest = lowest;
        this.highest = highest;
    }
}
